"""The worker: owns the device, the model and the KV cache, and runs the steps that the scheduler plans."""
