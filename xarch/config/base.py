"""Base class of the parts of a configuration, and the largest values of their fields."""

from __future__ import annotations

from pydantic import ConfigDict

from xarch.contracts.options import Options

UNITS = 10**15
"""Largest budget, in tokens, images or rays."""
STEPS = 10**12
SAMPLES = 10**6
SECONDS = 1e9
"""Thirty years."""


class Model(Options):
    """Base class of the parts of a configuration, whose numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)
