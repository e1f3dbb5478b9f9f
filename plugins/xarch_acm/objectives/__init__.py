"""Objectives of adaptive computation modules (Wójcik et al., arXiv 2312.10193), one file each."""
