"""What every process knows: configuration, errors, parameters, logging. Imports nothing of octavo's above it."""
