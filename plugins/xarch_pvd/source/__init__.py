"""Fields as teachers: what a reference names, the files of other programs, and how they become fields."""
