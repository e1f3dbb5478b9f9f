"""Objectives that come with xarch, one file per family of losses."""
