"""One file per part of the report: files of a run in, blocks out, None where there is nothing to show."""
