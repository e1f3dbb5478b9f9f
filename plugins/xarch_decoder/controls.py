"""What a student must beat: the teacher without training, cut to the student's state bytes in the same layers.

Legend: K key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

HEAVY_HITTERS = "H2O int8"
"""The strongest of the published schemes that were measured at the bytes of such students
(`benchmarks/cache_schemes.py`)."""


def window_layout(facts: DecoderFacts, budget: int, precision: ExactPrecision) -> MemoryLayout | None:
    """Return the longest window with sinks within ``budget`` bytes, None if not one token fits."""
    entry = entry_bytes(facts.head_dim, precision, importance=False)
    window = budget // (facts.kv_heads * entry) - SINKS
    if window < 1:
        return None
    return MemoryLayout(SINKS, window, exact=precision)


def eviction_layout(
    facts: DecoderFacts, budget: int, exact: ExactPrecision = "float32", stored: SlotPrecision = "float32"
) -> MemoryLayout | None:
    """Return sinks, window and the tokens with the largest running mean of attention received, within ``budget`` bytes;
    None if not one such token fits.

    Args:
        exact: precision of sinks and window.
        stored: precision of the tokens kept for their attention; they need no position, since their keys could be
            rotated.
    """
    recent, kept = (entry_bytes(facts.head_dim, precision, importance=True) for precision in (exact, stored))
    left = budget // facts.kv_heads - SINKS * recent
    window = max(1, round(WINDOW_SHARE * int(left / (WINDOW_SHARE * recent + (1 - WINDOW_SHARE) * kept))))
    slots = (left - window * recent) // kept
    if slots < 1:
        return None
    return MemoryLayout(SINKS, window, slots, exact=exact, stored=stored)


def heavy_hitter_layout(facts: DecoderFacts, budget: int) -> MemoryLayout | None:
    """Return H2O (arXiv 2306.14048) in int8 within ``budget`` bytes, None if not two tokens fit: half of the places for
    the most recent tokens, half for those with the largest sum of attention received, without sinks of their own.

    Keys and values are rounded as they arrive. Tokens kept for their attention are held as they were and count with the
    bytes of int8; sums of attention take none. Both favour the control.
    """
    places = budget // (facts.kv_heads * entry_bytes(facts.head_dim, "int8", importance=False))
    recent = places // 2
    return MemoryLayout(0, recent, places - recent, exact="int8", decay=1.0, age=0) if places >= 2 else None


def control_layouts(student: DecoderStudent) -> dict[str, dict[int, MemoryLayout]]:
    """Return the memories of every control by name and layer, within the bytes of the student's constant states; none
    where no layer has one, and no control that does not fit into every such layer."""
    facts = student.facts
    budgets = {i: n for i, n in student.state_bytes().items() if facts.window(i) is None}
    made: dict[str, Callable[[int], MemoryLayout | None]] = {
        f"window {precision}": partial(window_layout, facts, precision=precision) for precision in WINDOWS
    }
    made |= {name: partial(eviction_layout, facts, exact=e, stored=s) for name, (e, s) in EVICTIONS.items()}
    made[HEAVY_HITTERS] = partial(heavy_hitter_layout, facts)
    found: dict[str, dict[int, MemoryLayout]] = {}
    for name, layout_of in made.items():
        fitting = {i: layout for i, n in budgets.items() if (layout := layout_of(n)) is not None}
        if fitting and len(fitting) == len(budgets):
            found[name] = fitting
    return found


def decoder_controls(teacher: Teacher, student: DecoderStudent) -> dict[str, Control]:
    """Return the controls of a student by name; none if no layer has a constant state, or the teacher's attention of
    such a layer is not there."""
    if teacher.facts != student.facts:
        return {}
    budgets, found = student.state_bytes(), {}
    for name, layouts in control_layouts(student).items():
        try:
            model = bounded_teacher(teacher, layouts)
        except PlanError:
            return {}
        found[name] = Control(model, _facts(student.facts, budgets, layouts))
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
    entries = [(layout.window, layout.slots) for layout in layouts.values()]
    windows, slots = zip(*entries, strict=True)
    # The positions of tokens kept for their attention need no bytes: their keys could be rotated.
    bytes_used = [min(layout.bytes(facts.kv_heads, facts.head_dim), budgets[i]) for i, layout in layouts.items()]
    sinks = min(layout.sinks for layout in layouts.values())
    words = f"{_range(windows)} recent tokens" + (f", {sinks} first" if sinks else "")
    return {
        "keeps": words + (f", {_range(slots)} most attended" if max(slots) else ""),
        "layers": len(layouts),
        "state_bytes_a_layer": round(sum(bytes_used) / len(bytes_used)),
    }


def _range(sizes: tuple[int, ...]) -> str:
    return str(min(sizes)) if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
