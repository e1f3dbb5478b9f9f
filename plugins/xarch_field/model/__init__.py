"""The network: a representation behind a unit cube, its colour head, and how rays cross it."""
