"""The order of a start, and what runs until the end: sockets, engine process, serving, draining."""
