"""Fields trained from posed pictures, and the procedural scene of the demo."""
