"""What the core and the worker both know of KV caches: plain data."""
