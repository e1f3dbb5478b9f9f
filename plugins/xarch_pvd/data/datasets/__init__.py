"""Posed images from the folders that radiance-field programs read. Importing this package imports no torch."""
