"""Models that also see: which tower makes rows of their text part, and how their files name its tensors."""
