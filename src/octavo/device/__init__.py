"""The `Device` seam: memory, upload and synchronisation; everything the runner may not know about a device."""
