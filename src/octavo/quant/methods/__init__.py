"""Quantized checkpoints of Hugging Face's kind: for each method of quantization, what its tensors mean."""
