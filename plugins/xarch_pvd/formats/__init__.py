"""Files that hold a radiance field, read into and written from one neutral record.

Importing this package imports no torch; ``read_field`` and the format modules do.
"""
