"""Peer implementations. Each function takes the inputs by name and returns the result."""
