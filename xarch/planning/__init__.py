"""From a configuration to a plan: everything that can be known before a weight is loaded."""
