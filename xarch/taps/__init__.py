"""Taps: which student value meets which teacher value, proven before anything runs."""
