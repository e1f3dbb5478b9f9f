"""Random tokens."""

from __future__ import annotations

import torch

from xarch import Batch


def token_batch(vocab: int, samples: int = 2, length: int = 24, seed: int = 0) -> Batch:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids_BL = torch.randint(0, vocab, (samples, length), generator=generator)
    return Batch({"input_ids": ids_BL}, samples * length)
