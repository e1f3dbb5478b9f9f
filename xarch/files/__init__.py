"""Files: the run folder, safe reading and writing of weights, digests, the user's cache."""
