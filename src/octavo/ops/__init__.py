"""The operations of a step: what they mean (reference), how a device does them, and the table that binds them."""
