"""Quantized weights: one device-neutral form, and a transcoder for each checkpoint format that leads to it."""
