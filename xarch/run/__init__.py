"""Runs: the conversion from plan to report, its stages, evaluation, quality gates and delivery."""
