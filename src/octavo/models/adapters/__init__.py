"""Adapters of low rank (LoRA): their files, and what of a model's program they change."""
