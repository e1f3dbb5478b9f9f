"""Radiance fields: any-to-any conversion by progressive volume distillation (PVD, arXiv 2211.15977)."""
