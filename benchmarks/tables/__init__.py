"""What a table says of each benchmark: its points summed up, each figure with its spread and its rival.

One function a benchmark, by name in :data:`ROWS`; :mod:`benchmarks.page` draws the rows. A result of any other name
must have points that are rows already (keys as in :class:`~benchmarks.tables.row.Row`), as those of studies are.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.store import Result
from benchmarks.tables import adaptive, conversions, edge, fields, kernels, robustness
from benchmarks.tables.row import Row


def rows(result: Result) -> list[Row]:
    """The table of a result."""
    name = result.benchmark
    found = next((make for known, make in ROWS.items() if name == known or name.startswith(f"{known}_")), ready)
    return found(result)


def ready(result: Result) -> list[Row]:
    """Points that are rows already."""
    return [Row(**{key: str(value) for key, value in point.items()}) for point in result.points]


ROWS: dict[str, Callable[[Result], list[Row]]] = {
    "kernels": kernels.kernels,
    "conversion_speed": conversions.conversion_speed,
    "constant_state": conversions.constant_state,
    "cache_schemes": conversions.cache_schemes,
    "state_recall": conversions.state_recall,
    "acm_speed": adaptive.acm_speed,
    "edge_speed": edge.edge_speed,
    "encdec_speed": edge.encdec_speed,
    "encdec_decoder": conversions.encdec_decoder,
    "matrix_memory": conversions.matrix_memory,
    "plan_accuracy": conversions.plan_accuracy,
    "engine_overhead": conversions.engine_overhead,
    "streamed_memory": conversions.streamed_memory,
    "faults": robustness.faults,
    "fuzz": robustness.fuzz,
    "smollm2": conversions.smollm2,
    "fields_any_to_any": fields.any_to_any,
    "fields_active_levels": fields.active_levels,
    "fields_edited": fields.edited,
    "fields_exported": fields.exported,
    "fields_round_trips": fields.round_trips,
    "fields_speed_up": fields.speed_up,
    "fields_staged": fields.staged,
}
"""Benchmark -> its table; also for longer names that start with it and an underscore."""
