"""The network: an encoder and a decoder whose layers are those of a causal decoder."""
