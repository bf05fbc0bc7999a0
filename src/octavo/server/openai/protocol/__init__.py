"""Bodies and replies of OpenAI's API."""
