"""Students: their representations, and what they take from the teacher before training."""
