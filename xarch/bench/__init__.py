"""How fast exported graphs are in their runtime, and where their nodes run."""
