"""Sources and decoder tokens as one row, as a decoder reads them.

Legend: B batch, S source tokens, T decoder tokens, L = S + T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xarch import Batch


def joined_rows(batch: Batch) -> Batch:
    """Return ``input_ids`` and ``segment_ids`` [B, L] of pairs: sources moved to the right, so that all rows have the
    same boundary; segments tell pads before a source from text."""
    ids_BS, mask_BS, decoder_BT = batch["input_ids"], batch["attention_mask"], batch["decoder_input_ids"]
    width = ids_BS.shape[1]
    place_S = torch.arange(width, device=ids_BS.device)
    pads_B1 = width - mask_BS.long().sum(1, keepdim=True)
    moved_BS: Tensor = ids_BS.gather(1, (place_S - pads_B1) % width)
    segment_BS = (place_S >= pads_B1).long()
    return Batch(
        {
            "input_ids": torch.cat([moved_BS, decoder_BT], 1),
            "segment_ids": torch.cat([segment_BS, torch.ones_like(decoder_BT)], 1),
            "decoder_input_ids": decoder_BT,
        },
        batch.units,
    )
