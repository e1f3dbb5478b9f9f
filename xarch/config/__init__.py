"""Configuration: the schema, and loading with the origin of every value."""
