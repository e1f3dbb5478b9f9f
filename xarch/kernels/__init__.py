"""Kernels: operations with a naive reference, a fast form in plain PyTorch, and further backends. See README.md."""

from __future__ import annotations

from xarch.kernels.allocator import keep_freed_memory
from xarch.kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from xarch.kernels.dispatch import Choice, backends, describe, register, use_backend
from xarch.kernels.folded_memory import (
    FoldedLayout,
    FoldedPrecision,
    FoldedRanges,
    FoldedTables,
    entry_cost,
    fold_memory,
    folded_memory,
    folded_memory_state,
    folded_memory_step,
    folded_tables,
    state_sizes,
    table_sizes,
)
from xarch.kernels.gated_delta import gated_delta, gated_delta_step
from xarch.kernels.graph_forms import FORMS, SIZES_ONLY, graph_form, graph_forms, in_runtime
from xarch.kernels.grid_encoding import grid_encode
from xarch.kernels.hash_encoding import HashConfig, hash_encode
from xarch.kernels.matrix_distance import MatrixDistance, attention_matrix, matrix_distance
from xarch.kernels.mixing_matrix import mixing_matrix
from xarch.kernels.octave_waves import octave_waves
from xarch.kernels.prefix_mlp import ACTIVATIONS, prefix_mlp
from xarch.kernels.prefix_sum import prefix_sum
from xarch.kernels.runtime_attention import attention_to_all, grouped_query_attention
from xarch.kernels.runtime_recurrence import causal_conv_with_state, linear_attention
from xarch.kernels.selective_scan import selective_scan, selective_scan_step
from xarch.kernels.slot_memory import (
    ExactPrecision,
    MemoryLayout,
    Rotary,
    SlotPrecision,
    entry_bytes,
    slot_memory,
    slot_memory_state,
)
from xarch.kernels.ssd import ssd, ssd_step

__all__ = [
    "ACTIVATIONS",
    "FORMS",
    "SIZES_ONLY",
    "Choice",
    "ExactPrecision",
    "FoldedLayout",
    "FoldedPrecision",
    "FoldedRanges",
    "FoldedTables",
    "HashConfig",
    "MatrixDistance",
    "MemoryLayout",
    "Rotary",
    "SlotPrecision",
    "attention_matrix",
    "attention_to_all",
    "backends",
    "causal_conv1d",
    "causal_conv1d_step",
    "causal_conv_with_state",
    "describe",
    "entry_bytes",
    "entry_cost",
    "fold_memory",
    "folded_memory",
    "folded_memory_state",
    "folded_memory_step",
    "folded_tables",
    "gated_delta",
    "gated_delta_step",
    "graph_form",
    "graph_forms",
    "grid_encode",
    "grouped_query_attention",
    "hash_encode",
    "in_runtime",
    "keep_freed_memory",
    "linear_attention",
    "matrix_distance",
    "mixing_matrix",
    "octave_waves",
    "prefix_mlp",
    "prefix_sum",
    "register",
    "selective_scan",
    "selective_scan_step",
    "slot_memory",
    "slot_memory_state",
    "ssd",
    "ssd_step",
    "state_sizes",
    "table_sizes",
    "use_backend",
]
