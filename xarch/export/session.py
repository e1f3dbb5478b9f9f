"""onnxruntime sessions for the graphs of one folder, called by name."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from xarch.errors import XarchError
from xarch.failures import is_machine_failure

# In case onnxruntime was imported before xarch set its environment variable.
ort.disable_telemetry_events()

_RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    ValueError,
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
"""Errors of onnxruntime: unrelated classes, one per status code, and ValueError for missing inputs."""


NO_PREPACKING = "session.disable_prepacking"

EXACT_SUMS = {"session.x64quantprecision": "1"}
"""Without it sums of products of 8 bits saturate at 16 bits on x86 without VNNI; accelerators add in 32 bits."""


def open_session(
    path: Path, provider: str, *, threads: int, optimise: bool = True, prepack: bool = True, profile: Path | None = None
) -> ort.InferenceSession:
    """Open a session on one file.

    Args:
        threads: threads inside an operator.
        prepack: copy weights into the layout of the matrix kernels. Matrix products get much faster; a single token
            does not, and without it weights stay memory-mapped and are shared between sessions.
        profile: prefix of the file for node timings.
    """
    options = ort.SessionOptions()
    # Errors are raised; printed by the library, they would carry names of the file to the terminal as they are.
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads sleep while they wait, as those of torch do (xarch.threads): beside other work they would keep the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimise else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    for entry in EXACT_SUMS.items():
        options.add_session_config_entry(*entry)
    if not prepack:
        options.add_session_config_entry(NO_PREPACKING, "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(str(path), options, providers=[provider])


@cache
def saturates() -> bool:
    """Return whether sums of 8-bit products saturate on this processor in a graph that the runtime runs as it is: what
    :data:`EXACT_SUMS` asks for is a rewrite."""
    width, largest = 64, 127
    weight = helper.make_tensor("weight", TensorProto.INT8, [width, 1], [largest] * width)
    zero = helper.make_tensor("zero", TensorProto.UINT8, [], [0])
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "weight", "zero"], ["y"])],
        "sums",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, width])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 1])],
        [weight, zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((1, width), 255, np.uint8)})
    return int(found.item()) != 255 * largest * width


class RuntimeFailure(XarchError):
    """The runtime rejects a graph or fails while running it."""


class Sessions:
    """A ``Call`` that opens each graph of ``folder`` on first use.

    Args:
        optimise: whether the runtime rewrites the graphs.
        prepack: see :func:`open_session`; default as ``optimise``.

    Attributes:
        calls: graph -> number of calls.
    """

    def __init__(
        self, folder: Path, provider: str, *, threads: int, optimise: bool, prepack: bool | None = None
    ) -> None:
        self.folder, self.provider, self.threads, self.optimise = folder, provider, threads, optimise
        self.prepack = optimise if prepack is None else prepack
        self._open: dict[str, tuple[ort.InferenceSession, list[str]]] = {}
        self.calls: Counter[str] = Counter()

    def __call__(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run ``graph`` on named inputs and return its named outputs.

        Raises:
            RuntimeFailure: the runtime cannot load or run the graph on these inputs.
        """
        self.calls[graph] += 1
        try:
            if graph not in self._open:
                self._open[graph] = self._session(graph)
            session, names = self._open[graph]
            return dict(zip(names, session.run(names, inputs), strict=True))
        except _RUNTIME_ERRORS as e:
            if is_machine_failure(e):
                raise
            raise RuntimeFailure(f"{graph}: {str(e).splitlines()[0]}") from e

    def _session(self, graph: str) -> tuple[ort.InferenceSession, list[str]]:
        path = self.folder / f"{graph}.onnx"
        session = open_session(path, self.provider, threads=self.threads, optimise=self.optimise, prepack=self.prepack)
        return session, [output.name for output in session.get_outputs()]
