"""Who computes a step: the only door from the core to the worker."""
