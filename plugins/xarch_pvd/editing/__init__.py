"""Editing a field before conversion: erase, crop, move, compose (PVD, arXiv 2211.15977, section 5).

An edit composes query functions in world space. Nothing is resampled, so any field can be edited, including those of
other projects; the conversion then turns the edited scene into a single representation.
"""
