"""The metric, its images and its section of the report."""
