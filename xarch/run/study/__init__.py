"""Studies: arms × seeds of conversions, each a separate run, compared in one table."""
