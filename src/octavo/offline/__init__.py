"""Programs without a server: `octavo.LLM` and its results."""
