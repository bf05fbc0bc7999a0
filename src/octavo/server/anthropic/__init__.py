"""Anthropic's Messages API: bodies to turns, news to replies."""
