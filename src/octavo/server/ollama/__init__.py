"""Ollama's API: bodies to turns, news to lines."""
