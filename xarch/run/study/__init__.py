"""Studies: arms × seeds of conversions, each a run of its own, compared in one table."""
