"""Experiment trackers get a run's figures in order, and one that fails does not stop the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.run.stack_case import StackCase
from xarch.errors import UsageError
from xarch.files.bounded_json import read_json


def stages() -> dict[str, Any]:
    return {"first": StackCase.stage(), "second": StackCase.stage()}


@pytest.mark.slow
def test_mlflow_gets_the_figures_of_every_stage(
    stack: StackCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    run = stack.convert(stages=stages(), runtime__trackers={"mlflow": {"run_name": "mine"}})
    client = mlflow.MlflowClient(store)
    (experiment,) = [e for e in client.search_experiments() if e.name != "Default"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert found.data.params["teacher"] == "stack:3"
    losses = [
        client.get_metric_history(found.info.run_id, f"0{i}-{name}/loss") for i, name in ((1, "first"), (2, "second"))
    ]
    assert max(m.step for m in losses[0]) < min(m.step for m in losses[1])
    assert found.data.metrics["evaluation/mse"] == pytest.approx(
        read_json(Path(run.path) / "eval.json")["student"]["mse"], rel=1e-6
    )


def test_tensorboard_through_accelerate_and_one_that_fails(
    stack: StackCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.tracking import TensorBoardTracker

    def fail(self: object, values: object, step: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(TensorBoardTracker, "log", fail)
    run = stack.convert(runtime__trackers={"tensorboard": {}})
    assert list((Path(run.path) / "tb").rglob("events.out.tfevents*"))
    assert (
        "tracker tensorboard gets no more figures: OSError: the disk is full"
        in (Path(run.path) / "log.txt").read_text()
    )


@pytest.mark.parametrize(
    ("name", "said"), [("wandbb", "there is no tracker 'wandbb'"), ("aim", "'aim' is not installed")]
)
def test_what_cannot_start_says_so_before_the_training(stack: StackCase, name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stack.convert(runtime__trackers={name: {}})
