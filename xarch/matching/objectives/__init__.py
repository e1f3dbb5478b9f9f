"""Objectives that come with xarch, one file per kind of loss; all of them take any dense layout."""
