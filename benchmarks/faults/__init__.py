"""Campaigns of faults: what broken, hostile or interrupted surroundings do to xarch."""
