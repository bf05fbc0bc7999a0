"""Wire models: pydantic for what comes in, msgspec structs for what goes out."""
