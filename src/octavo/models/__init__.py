"""Model families as data, checkpoints, and the transformer that is built from both."""
