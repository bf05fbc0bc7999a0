"""The native operations of the CPU."""
