"""Judging a finished student."""
