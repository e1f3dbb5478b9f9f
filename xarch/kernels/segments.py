"""Packed documents: from segment ids to runs.

Legend: B batch, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def runs(segment_ids_BL: Tensor) -> Tensor:
    """Number of changes of id up to each token [B, L], int64.

    Two tokens may exchange information iff their run numbers are equal; unlike ids, run numbers never come back
    (ids 0 0 1 1 0 are three documents), so comparing first and last of a range shows whether it holds one document.
    """
    run_BL = torch.zeros_like(segment_ids_BL, dtype=torch.int64)
    if segment_ids_BL.shape[1] > 1:
        run_BL[:, 1:] = (segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]).cumsum(1)
    return run_BL
