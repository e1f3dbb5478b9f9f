"""The network: exchangeable sequence mixers in a stack of otherwise unchanged blocks."""
