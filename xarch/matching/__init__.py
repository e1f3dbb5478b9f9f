"""Matching: which student value is compared with which teacher value, checked before anything runs, and how."""
