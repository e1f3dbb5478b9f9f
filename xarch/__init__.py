"""xarch converts a trained model from one architecture into another and ships the result to the edge.

Names resolve on first use, so ``import xarch`` imports no torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from xarch._version import __version__
from xarch.threads import wait_passively

# onnxruntime sends what it is used for to its maker since 1.29; xarch sends nothing anywhere. Read when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Before anything imports torch.
wait_passively()

_PUBLIC = {
    # running conversions
    "plan": "xarch.api",
    "convert": "xarch.api",
    "load": "xarch.api",
    "load_student": "xarch.api",
    "load_teacher": "xarch.api",
    "export": "xarch.api",
    "study": "xarch.api",
    # extending xarch
    "hookimpl": "xarch.registry.hooks",
    "Batch": "xarch.contracts.batch",
    "Tap": "xarch.contracts.tap",
    "Sink": "xarch.contracts.model",
    "TapModel": "xarch.contracts.model",
    "Teacher": "xarch.contracts.model",
    "LoadedTeacher": "xarch.contracts.model",
    "Student": "xarch.contracts.model",
    "Site": "xarch.contracts.local",
    "Solver": "xarch.contracts.local",
    "Initialisation": "xarch.contracts.model",
    "LocalStudent": "xarch.contracts.local",
    "Replaceable": "xarch.contracts.replaceable",
    "rebuilder": "xarch.registry.rebuild",
    "Options": "xarch.contracts.options",
    "validated": "xarch.config.validation",
    "typed": "xarch.contracts.typed",
    "Size": "xarch.contracts.typed",
    "SourceAdapter": "xarch.contracts.adapters",
    "SourceInfo": "xarch.contracts.adapters",
    "TargetAdapter": "xarch.contracts.adapters",
    "Control": "xarch.contracts.control",
    "Family": "xarch.contracts.family",
    "Facts": "xarch.contracts.family",
    "Objective": "xarch.contracts.objective",
    "MatchContext": "xarch.contracts.objective",
    "DenseObjective": "xarch.matching.objectives.dense",
    "DivergenceOptions": "xarch.matching.objectives.divergence",
    "averaged": "xarch.matching.objectives.divergence",
    "divergence": "xarch.matching.objectives.divergence",
    "Check": "xarch.planning.plan",
    "Connector": "xarch.contracts.connector",
    "BatchStep": "xarch.contracts.batch_step",
    "StepContext": "xarch.contracts.batch_step",
    "OptimiserKind": "xarch.contracts.optimiser",
    "OptimiserWrapper": "xarch.contracts.optimiser",
    "Schedule": "xarch.contracts.optimiser",
    "DataProvider": "xarch.contracts.data",
    "DataInfo": "xarch.contracts.data",
    "DataRequest": "xarch.contracts.data",
    "TensorInfo": "xarch.contracts.data",
    "IndexedData": "xarch.contracts.indexed",
    "IndexedStream": "xarch.contracts.indexed",
    "SkipSample": "xarch.contracts.indexed",
    "split_indices": "xarch.contracts.indexed",
    "BatchStream": "xarch.contracts.data",
    "Metric": "xarch.contracts.metric",
    "Evaluation": "xarch.contracts.metric",
    "EvaluationRequest": "xarch.contracts.metric",
    "StageKind": "xarch.contracts.stage",
    "StageContext": "xarch.contracts.stage",
    "StageOutcome": "xarch.contracts.stage",
    "StageRequest": "xarch.contracts.stage",
    "BenchCase": "xarch.contracts.bench",
    "Call": "xarch.contracts.bench",
    "Chain": "xarch.contracts.chain",
    "Link": "xarch.contracts.chain",
    "Divergence": "xarch.contracts.export",
    "ExportGraph": "xarch.contracts.export",
    "Measure": "xarch.contracts.export",
    "ParityCase": "xarch.contracts.export",
    "Runner": "xarch.contracts.export",
    "Profile": "xarch.contracts.export",
    "Throughput": "xarch.contracts.export",
    # measuring exported graphs
    "Timing": "xarch.bench.timing",
    "graph_metadata": "xarch.bench.graph",
    "measure": "xarch.bench.timing",
    "timing": "xarch.bench.timing",
    "GraphCalls": "xarch.export.in_place",
    "open_session": "xarch.export.session",
    # commands of plugins
    "clean": "xarch.printable",
    "make_console": "xarch.cli.console",
    "progress_bar": "xarch.cli.console",
    "say": "xarch.printable",
    "write_document": "xarch.cli.stdout",
    # files
    "BoundedLoader": "xarch.config.yaml_text",
    "cache_dir": "xarch.files.home",
    "check_stored_archive": "xarch.files.limits",
    "file_digest": "xarch.files.digest",
    "sampled_digest": "xarch.files.digest",
    "weights_digest": "xarch.files.digest",
    "load_weights": "xarch.files.safe_load",
    "new_folder": "xarch.files.atomic",
    "one_at_a_time": "xarch.files.lock",
    "open_regular": "xarch.files.regular",
    "regular_text": "xarch.files.regular",
    "parse_json": "xarch.files.bounded_json",
    "parse_yaml": "xarch.config.yaml_text",
    "read_bounded": "xarch.files.bounded_json",
    "read_json": "xarch.files.bounded_json",
    "refuse_link_out": "xarch.files.regular",
    "save_weights": "xarch.files.safe_load",
    "too_dense": "xarch.files.limits",
    "weights_header": "xarch.files.header",
    "zip_members": "xarch.files.limits",
    # errors
    "XarchError": "xarch.errors",
    "UsageError": "xarch.errors",
    "PlanError": "xarch.errors",
    "PluginError": "xarch.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'xarch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from xarch.api import convert, export, load, load_student, load_teacher, plan, study
    from xarch.bench.graph import graph_metadata
    from xarch.bench.timing import Timing, measure, timing
    from xarch.cli.console import make_console, progress_bar
    from xarch.cli.stdout import write_document
    from xarch.config.validation import validated
    from xarch.config.yaml_text import BoundedLoader, parse_yaml
    from xarch.contracts.adapters import SourceAdapter, SourceInfo, TargetAdapter
    from xarch.contracts.batch import Batch
    from xarch.contracts.batch_step import BatchStep, StepContext
    from xarch.contracts.bench import BenchCase, Call
    from xarch.contracts.chain import Chain, Link
    from xarch.contracts.connector import Connector
    from xarch.contracts.control import Control
    from xarch.contracts.data import BatchStream, DataInfo, DataProvider, DataRequest, TensorInfo
    from xarch.contracts.export import Divergence, ExportGraph, Measure, ParityCase, Profile, Runner, Throughput
    from xarch.contracts.family import Facts, Family
    from xarch.contracts.indexed import IndexedData, IndexedStream, SkipSample, split_indices
    from xarch.contracts.local import LocalStudent, Site, Solver
    from xarch.contracts.metric import Evaluation, EvaluationRequest, Metric
    from xarch.contracts.model import Initialisation, LoadedTeacher, Sink, Student, TapModel, Teacher
    from xarch.contracts.objective import MatchContext, Objective
    from xarch.contracts.optimiser import OptimiserKind, OptimiserWrapper, Schedule
    from xarch.contracts.options import Options
    from xarch.contracts.replaceable import Replaceable
    from xarch.contracts.stage import StageContext, StageKind, StageOutcome, StageRequest
    from xarch.contracts.tap import Tap
    from xarch.contracts.typed import Size, typed
    from xarch.errors import PlanError, PluginError, UsageError, XarchError
    from xarch.export.in_place import GraphCalls
    from xarch.export.session import open_session
    from xarch.files.atomic import new_folder
    from xarch.files.bounded_json import parse_json, read_bounded, read_json
    from xarch.files.digest import file_digest, sampled_digest, weights_digest
    from xarch.files.header import weights_header
    from xarch.files.home import cache_dir
    from xarch.files.limits import check_stored_archive, too_dense, zip_members
    from xarch.files.lock import one_at_a_time
    from xarch.files.regular import open_regular, refuse_link_out, regular_text
    from xarch.files.safe_load import load_weights, save_weights
    from xarch.matching.objectives.dense import DenseObjective
    from xarch.matching.objectives.divergence import DivergenceOptions, averaged, divergence
    from xarch.planning.plan import Check
    from xarch.printable import clean, say
    from xarch.registry.hooks import hookimpl
    from xarch.registry.rebuild import rebuilder
