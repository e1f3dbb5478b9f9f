"""The metric, its pictures and its section of the report."""
