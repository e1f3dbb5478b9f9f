"""Inputs of a causal convolution together with the ones that came before.

Legend: B batch, L tokens, C channels, K taps, J = K - 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.kernels.segments import runs


def prepend(x_BLC: Tensor, state_BCJ: Tensor | None, taps: int, run_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Inputs and run numbers with the J inputs before the first token in front, [B, J + L, ...]."""
    before = taps - 1
    if state_BCJ is None:
        extended = F.pad(x_BLC, (0, 0, before, 0))
    else:
        extended = torch.cat([state_BCJ.to(x_BLC.dtype).transpose(1, 2), x_BLC], 1)
    return extended, None if run_BL is None else F.pad(run_BL, (before, 0))


def final_state(x_BLC: Tensor, state_BCJ: Tensor | None, taps: int, segment_ids_BL: Tensor | None) -> Tensor:
    """The last J inputs [B, C, J], zero where a change of document lies between them and the last token."""
    before = taps - 1
    length = x_BLC.shape[1]
    tail_BJC, _ = prepend(x_BLC[:, max(length - before, 0) :], state_BCJ, taps, None)
    tail_BJC = tail_BJC[:, tail_BJC.shape[1] - before :]
    if segment_ids_BL is not None and length > 0:
        run_BL = F.pad(runs(segment_ids_BL), (before, 0))[:, length:]
        tail_BJC = tail_BJC * (run_BL == run_BL[:, -1:])[:, :, None] if before else tail_BJC
    return tail_BJC.transpose(1, 2)
