"""What a user asks for: the schema, and loading it with the origin of every value."""
