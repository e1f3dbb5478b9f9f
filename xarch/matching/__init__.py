"""Matching: what is compared with what, by which objective, proven before anything runs."""
