"""Sine and cosine without Sin and Cos, which accelerators lack or compute in half precision only.

x is brought to [-pi, pi] in two steps (Cody and Waite), and cos(x) = 1 - 2 sin²(x / 2), whose sine is the series at 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xarch.export.lowerings.lowering import Lowering

TURN = 2 * math.pi
COARSE = 6.28125
"""2 pi in 9 bits: its multiples are exact up to 2^15 turns."""

SERIES = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(6))
"""To h^11 for |h| <= pi/2: the next term is below 6e-8."""


def cos(input: Tensor) -> Tensor:
    """Compute the cosine; maximum error 4e-7, and for large angles that of float32 angles."""
    turns = torch.floor(input * (1 / TURN) + 0.5)
    half = ((input - turns * COARSE) - turns * (TURN - COARSE)) * 0.5
    square = half * half
    sine = SERIES[-1] * square
    for a in reversed(SERIES[1:-1]):
        sine = (sine + a) * square
    sine = (sine + SERIES[0]) * half
    return 1 - 2 * sine * sine


def sin(input: Tensor) -> Tensor:
    """Compute the sine; maximum error 4e-7, and for large angles that of float32 angles."""
    turns = torch.floor(input * (1 / TURN) + 0.5)
    rest = (input - turns * COARSE) - turns * (TURN - COARSE)
    return cos(rest - math.pi / 2)


LOWERING = Lowering(
    "waves",
    "torch.sin and torch.cos by a polynomial instead of Sin and Cos",
    replaces=("Sin", "Cos"),
    functions={torch.sin: sin, torch.Tensor.sin: sin, torch.cos: cos, torch.Tensor.cos: cos},
)
