"""Files: the run folder, safe reading and writing of weights, the user's cache."""
