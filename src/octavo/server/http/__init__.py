"""HTTP over plain ASGI: exchanges, events, routes, limits, errors."""
