"""Plugins: declaration, isolated loading, lookup. Everything that depends on an architecture is a plugin."""
