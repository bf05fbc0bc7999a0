"""OpenAI's API: bodies to requests, deltas to replies."""
