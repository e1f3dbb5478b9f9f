"""Planning: everything that can be known before loading weights."""
