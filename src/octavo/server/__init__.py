"""The HTTP server: OpenAI's API over ASGI. It knows requests, replies and the client; never the engine's inside."""
