"""Modules under the names that vLLM gives them, for command lines that run one: they hold nothing of their own."""
