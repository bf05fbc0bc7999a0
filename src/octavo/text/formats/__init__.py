"""Output formats of models: how they write tool calls and what they think."""
