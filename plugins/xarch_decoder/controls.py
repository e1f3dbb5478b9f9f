"""What a student must beat: the teacher without training, cut to the student's state bytes in the same layers.

Legend: K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from xarch import Control, PlanError, Teacher
from xarch.kernels import ExactPrecision, MemoryLayout, SlotPrecision, entry_bytes
from xarch_decoder.copying import trunk_tensors
from xarch_decoder.facts import DecoderFacts
from xarch_decoder.model.attention import Attention
from xarch_decoder.model.memory import MemoryAttention
from xarch_decoder.student import DecoderStudent

SINKS = 4
"""First tokens that every control keeps: without them a window fails altogether (StreamingLLM, arXiv 2309.17453)."""

WINDOW_SHARE = 0.43
"""Part of the entries that eviction keeps for the most recent tokens."""

WINDOWS: tuple[ExactPrecision, ...] = ("float32", "float16", "int8")

EVICTIONS: dict[str, tuple[ExactPrecision, SlotPrecision]] = {
    "eviction float32": ("float32", "float32"),
    "eviction int8 and float16": ("int8", "float16"),
}
"""Precision of the most recent tokens, and of those that are kept for the attention they received."""


def window_layout(facts: DecoderFacts, budget: int, precision: ExactPrecision) -> MemoryLayout | None:
    """Return the longest window with sinks within ``budget`` bytes, None if not one token fits."""
    entry = entry_bytes(facts.head_dim, precision, importance=False)
    window = budget // (facts.kv_heads * entry) - SINKS
    if window < 1:
        return None
    size = (window,) * facts.kv_heads
    return MemoryLayout(SINKS, size, (0,) * facts.kv_heads, exact=precision)


def eviction_layout(
    facts: DecoderFacts, budget: int, exact: ExactPrecision = "float32", stored: SlotPrecision = "float32"
) -> MemoryLayout | None:
    """Return sinks, window and the tokens with the largest running mean of attention received, within ``budget`` bytes;
    None if not one such token fits.

    Args:
        exact: precision of sinks and window.
        stored: precision of the tokens kept for their attention; they need no position or count, since their keys are
            rotated and each is one token.
    """
    recent, kept = (entry_bytes(facts.head_dim, precision, importance=True) for precision in (exact, stored))
    left = budget // facts.kv_heads - SINKS * recent
    window = max(1, round(WINDOW_SHARE * int(left / (WINDOW_SHARE * recent + (1 - WINDOW_SHARE) * kept))))
    slots = (left - window * recent) // kept
    if slots < 1:
        return None
    heads = facts.kv_heads
    return MemoryLayout(SINKS, (window,) * heads, (slots,) * heads, exact=exact, stored=stored, write="evict")


def decoder_controls(teacher: Teacher, student: DecoderStudent) -> dict[str, Control]:
    """Return the controls of a student by name; none if no layer has a constant state, or the teacher's attention of
    such a layer is not there."""
    budgets = {i: n for i, n in student.state_bytes().items() if student.facts.window(i) is None}
    if not budgets or teacher.facts != student.facts:
        return {}
    layouts: dict[str, dict[int, MemoryLayout | None]] = {
        f"window {precision}": {i: window_layout(student.facts, n, precision) for i, n in budgets.items()}
        for precision in WINDOWS
    }
    for name, precisions in EVICTIONS.items():
        layouts[name] = {i: eviction_layout(student.facts, n, *precisions) for i, n in budgets.items()}
    found: dict[str, Control] = {}
    for name, by_layer in layouts.items():
        fitting = {i: layout for i, layout in by_layer.items() if layout is not None}
        if len(fitting) < len(by_layer):
            continue
        try:
            model = bounded_teacher(teacher, fitting)
        except PlanError:
            return {}
        found[name] = Control(model, _facts(student.facts, budgets, fitting))
    return found


def bounded_teacher(teacher: Teacher, layouts: Mapping[int, MemoryLayout]) -> DecoderStudent:
    """Return the teacher with memories of constant size in some layers; it shares the teacher's tensors.

    Raises:
        PlanError: the teacher lacks the attention of a layer.
    """
    facts: DecoderFacts = teacher.facts
    mixers = [[partial(MemoryAttention, layout=layouts[i]) if i in layouts else Attention] for i in range(facts.layers)]
    model = DecoderStudent(facts, mixers, device="meta")
    model.module.load_state_dict(trunk_tensors(model, teacher), assign=True)
    model.module.eval().requires_grad_(False)
    return model


def _facts(facts: DecoderFacts, budgets: Mapping[int, int], layouts: Mapping[int, MemoryLayout]) -> dict[str, object]:
    entries = [(layout.windows[0], layout.slots[0]) for layout in layouts.values()]
    windows, slots = zip(*entries, strict=True)
    # The positions and counts of evicted tokens need no bytes: their keys are rotated, and each is one token.
    bytes_used = [min(layout.bytes(facts.head_dim), budgets[i]) for i, layout in layouts.items()]
    words = f"{_range(windows)} recent tokens, {SINKS} first"
    return {
        "keeps": words + (f", {_range(slots)} most attended" if max(slots) else ""),
        "layers": len(layouts),
        "state_bytes_a_layer": round(sum(bytes_used) / len(bytes_used)),
    }


def _range(sizes: tuple[int, ...]) -> str:
    return str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
