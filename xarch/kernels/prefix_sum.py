"""Running sums along the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.graph_forms import graph_form
from xarch.kernels.precision import tracing


def prefix_sum(x: Tensor) -> Tensor:
    """Inclusive prefix sums along the last dimension.

    In the exported form "doubling" (see :data:`xarch.kernels.graph_forms.FORMS`) each step adds the partial sums that
    end twice as far back as in the step before (Hillis and Steele, Communications of the ACM 29:12, 1986).
    """
    if not (tracing() and graph_form("prefix_sum") == "doubling"):
        return x.cumsum(dim=-1)
    shift = 1
    while shift < x.shape[-1]:
        x = torch.cat((x[..., :shift], x[..., shift:] + x[..., :-shift]), dim=-1)
        shift *= 2
    return x
