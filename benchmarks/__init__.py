"""Benchmarks: each measures into ``benchmarks/out``; ``python -m benchmarks publish NAME`` makes a result official."""
