"""Students: their representations and their initialisation from the teacher."""
