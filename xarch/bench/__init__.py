"""Benchmarks of exported graphs: speed in their runtime, and which provider runs each node."""
