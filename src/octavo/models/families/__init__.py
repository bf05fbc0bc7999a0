"""The families: from a configuration to layers, one file each."""
