"""The engine process: what is computed when. It knows token ids, limits and blocks; no text, no torch."""
