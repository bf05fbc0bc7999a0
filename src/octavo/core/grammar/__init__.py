"""Grammars in the engine: matchers, masks, and tokens that a grammar dictates."""
