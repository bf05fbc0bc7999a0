"""Blocks of the KV cache: who holds them, and what they may be used for again."""
