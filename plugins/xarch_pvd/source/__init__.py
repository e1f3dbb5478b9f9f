"""Fields as teachers: references, file formats of other programs, and their conversion to fields."""
