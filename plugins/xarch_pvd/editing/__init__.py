"""Editing a field before it is converted: erase, crop, move, put together (PVD, arXiv 2211.15977, section 5).

An edit composes query functions in world space. Nothing is resampled, so any field can be edited, other projects' too;
the conversion then brings the edited scene into one representation.
"""
