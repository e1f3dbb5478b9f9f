"""The network: a representation over the unit cube, its colour head, and ray marching."""
