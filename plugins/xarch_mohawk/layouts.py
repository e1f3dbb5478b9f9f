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
from xarch_mohawk.dm2 import DM2
from xarch_mohawk.gdn import GDN
from xarch_mohawk.mamba2 import Mamba2
from xarch_mohawk.mixer import RecurrentMixer


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a layout.

    Attributes:
        theirs: its name there.
        ours: name of the mixer's tensor.
        rows: rows of ours, in their order; None for all of them in our order.
        within: (first, all): ours are the rows from ``first`` on of ``all`` rows there, and the others are zero.
    """

    theirs: str
    ours: str
    rows: tuple[int, ...] | None = None
    within: tuple[int, int] | None = None


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


def mamba2(mixer: Mamba2) -> list[Entry]:
    """Return the layout of ``Mamba2`` in mamba_ssm, and of ``Mamba2Mixer`` and ``BambaMixer`` in transformers.

    All three name and order the tensors as this project does. Their settings: expand 1 (or H P / width), as many groups
    as heads, the norm's epsilon that of the decoder (mamba_ssm has 1e-5 only), and biases as in the options.
    """
    return [Entry(name, name) for name in mixer.state_dict()]


def phi_mamba(mixer: DM2) -> list[Entry]:
    """Return the layout of the mixers of Phi-Mamba and Llamba, whose bias of ``in_proj`` holds ``alpha_bias``.

    Raises:
        UsageError: the gain is not folded.
    """
    if not bool((mixer.gain == 1.0).all()):
        raise UsageError("the mixer's gain has no place there", "call `fold_gain` first; finished students have none")
    rows = mixer.rows("alpha")
    alpha = Entry("in_proj.bias", "alpha_bias", within=(rows.start, rows.stop))
    return [alpha, *(Entry(name, name) for name in mixer.state_dict() if name not in ("alpha_bias", "gain"))]


def save(mixer: RecurrentMixer[Any], layout: Sequence[Entry]) -> dict[str, Tensor]:
    """Return copies of the mixer's tensors in a layout."""
    own, found = mixer.state_dict(), {}
    for entry in layout:
        tensor = own[entry.ours]
        if entry.rows is not None:
            tensor = tensor[list(entry.rows)]
        if entry.within is not None:
            first, rows = entry.within
            tensor = torch.cat([tensor.new_zeros(first), tensor, tensor.new_zeros(rows - first - len(tensor))])
        found[entry.theirs] = tensor.clone()
    return found


def load(mixer: RecurrentMixer[Any], layout: Sequence[Entry], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in a layout to the mixer.

    Raises:
        UsageError: a tensor is missing, superfluous, of another shape, or not zero where the mixer has no place for it;
            nothing has been written.
    """
    own, wanted = mixer.state_dict(), save(mixer, layout)
    if set(wanted) != set(tensors):
        raise UsageError(f"tensors of the mixer: got {sorted(tensors)}, want {sorted(wanted)}")
    for entry in layout:
        theirs = tensors[entry.theirs]
        if theirs.shape != wanted[entry.theirs].shape:
            raise UsageError(f"{entry.theirs} has shape {list(theirs.shape)}, want {list(wanted[entry.theirs].shape)}")
        if entry.within is not None:
            first, last = entry.within[0], entry.within[0] + len(own[entry.ours])
            if bool(theirs[:first].any()) or bool(theirs[last:].any()):
                raise UsageError(f"{entry.theirs} is not zero outside rows {first} to {last - 1}, all this mixer has")
    with torch.no_grad():
        for entry in layout:
            theirs, ours = tensors[entry.theirs].to(own[entry.ours]), own[entry.ours]
            if entry.within is not None:
                theirs = theirs[entry.within[0] : entry.within[0] + len(ours)]
            ours[slice(None) if entry.rows is None else list(entry.rows)] = theirs


def _head_rows(mixer: RecurrentMixer[Any], part: str) -> list[range]:
    """Return the rows of a part of ``in_proj``, head by head."""
    rows, width = mixer.rows(part), mixer.widths[part] // mixer.heads
    return [range(rows.start + head * width, rows.start + (head + 1) * width) for head in range(mixer.heads)]
