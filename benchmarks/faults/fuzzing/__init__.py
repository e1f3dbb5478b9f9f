"""Parts of ``benchmarks/faults/fuzz.py``."""
