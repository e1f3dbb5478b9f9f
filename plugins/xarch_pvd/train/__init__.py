"""Training of fields from posed images, and the procedural scene of the demo."""
