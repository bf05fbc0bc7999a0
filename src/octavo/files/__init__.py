"""Files of models: where they come from, and how they are read. No torch."""
