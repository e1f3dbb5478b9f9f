"""The weights of a mixer under the names and in the order of other libraries, and back.

Legend: H heads, N key width, P value width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xarch import UsageError
from xarch_mohawk.gdn import GDN
from xarch_mohawk.mixer import RecurrentMixer


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a layout.

    Attributes:
        theirs: its name there.
        ours: name of the mixer's tensor.
        rows: rows of ours, in their order; None for all of them in our order.
    """

    theirs: str
    ours: str
    rows: tuple[int, ...] | None = None


def qwen3_next(mixer: GDN) -> list[Entry]:
    """Return the layout of ``Qwen3NextGatedDeltaNet`` in transformers, with as many key heads as value heads.

    Raises:
        UsageError: the mixer has another form, or states that query heads share.
    """
    if mixer.norm is None or mixer.states != mixer.heads or mixer.frequencies:
        raise UsageError(
            "Qwen3-Next has no mixer of this form",
            "build the student with `student.options.form: stock` and `student.options.states: heads`",
        )
    by_head = [_head_rows(mixer, part) for part in ("q", "k", "v", "z")]
    projected = [row for head in range(mixer.heads) for part in by_head for row in part[head]]
    gates = [row for head in range(mixer.heads) for part in ("beta", "alpha") for row in _head_rows(mixer, part)[head]]
    return [
        Entry("in_proj_qkvz.weight", "in_proj.weight", tuple(projected)),
        Entry("in_proj_ba.weight", "in_proj.weight", tuple(gates)),
        *(Entry(name, name) for name in ("conv1d.weight", "A_log", "dt_bias", "norm.weight", "out_proj.weight")),
    ]


def save(mixer: RecurrentMixer[Any], layout: Sequence[Entry]) -> dict[str, Tensor]:
    """Return copies of the mixer's tensors in a layout."""
    own = mixer.state_dict()
    return {
        entry.theirs: (own[entry.ours] if entry.rows is None else own[entry.ours][list(entry.rows)]).clone()
        for entry in layout
    }


def load(mixer: RecurrentMixer[Any], layout: Sequence[Entry], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in a layout to the mixer.

    Raises:
        UsageError: a tensor is missing, superfluous, or of another shape; nothing has been written.
    """
    own = mixer.state_dict()
    wanted = {e.theirs: (len(e.rows or own[e.ours]), *own[e.ours].shape[1:]) for e in layout}
    if set(wanted) != set(tensors):
        raise UsageError(f"tensors of the mixer: got {sorted(tensors)}, want {sorted(wanted)}")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise UsageError(f"{name} has shape {list(tensors[name].shape)}, want {list(shape)}")
    with torch.no_grad():
        for entry in layout:
            rows = slice(None) if entry.rows is None else list(entry.rows)
            own[entry.ours][rows] = tensors[entry.theirs].to(own[entry.ours])


def _head_rows(mixer: RecurrentMixer[Any], part: str) -> list[range]:
    """Return the rows of a part of ``in_proj``, head by head."""
    rows, width = mixer.rows(part), mixer.widths[part] // mixer.heads
    return [range(rows.start + head * width, rows.start + (head + 1) * width) for head in range(mixer.heads)]
