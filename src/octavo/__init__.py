"""octavo: a language-model serving engine with an OpenAI-compatible HTTP server."""

__version__ = "0.1.0"
