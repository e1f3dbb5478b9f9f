"""Everything that depends on an architecture is a plugin: declaration, isolated loading, lookup."""
