"""What is computed in each step, and what its answer changes."""
