"""Matching: which student value meets which teacher value, proven before anything runs, and how they are compared."""
