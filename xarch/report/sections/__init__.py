"""One file per section of the report. A section takes the files of a run and returns blocks, or None."""
