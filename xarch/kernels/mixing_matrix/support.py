"""Where causal matrices over tokens can be nonzero.

Legend: B batch, L tokens (row, then column).
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.segments import runs


def comparable(length: int, segment_ids_BL: Tensor | None, mask_BL: Tensor | None, device: torch.device) -> Tensor:
    """Where an entry can be nonzero [B or 1, L, L]: at or below the diagonal, in one document, not in padding."""
    allowed_BLL = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
    if segment_ids_BL is not None:
        run_BL = runs(segment_ids_BL)
        allowed_BLL = allowed_BLL & (run_BL[:, :, None] == run_BL[:, None, :])
    if mask_BL is not None:
        real_BL = mask_BL.bool()
        allowed_BLL = allowed_BLL & real_BL[:, :, None] & real_BL[:, None, :]
    return allowed_BLL
