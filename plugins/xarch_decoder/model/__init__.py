"""The network: interchangeable sequence mixers in a stack of otherwise unchanged blocks."""
