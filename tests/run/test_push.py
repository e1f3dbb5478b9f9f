"""What goes to a hub is a finished student, whole, with its card; nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.run.stack_case import StackCase
from xarch.cli.app import run as call
from xarch.errors import UsageError
from xarch.files.manifest import seal
from xarch.run.push import upload_of


@pytest.fixture
def done(stack: StackCase) -> Path:
    """A finished run with an export for each of two profiles."""
    folder = Path(stack.convert().path)
    for profile in ("cpu", "npu"):
        (folder / "export" / profile).mkdir(parents=True)
        (folder / "export" / profile / "model.onnx").write_bytes(b"graph")
        seal(folder / "export" / profile)
    return folder


def test_weights_and_card_are_at_the_top_and_exports_below(done: Path) -> None:
    upload = upload_of(done, "me/student")
    student = {"README.md", "config.json", "model.safetensors", "manifest.json"}
    exported = {f"onnx/{p}/{name}" for p in ("cpu", "npu") for name in ("model.onnx", "manifest.json")}
    assert student | exported == set(upload.files)
    assert upload.size == sum(file.stat().st_size for file in upload.files.values()) > 0
    assert "onnx/cpu/model.onnx" not in upload_of(done, "me/student", ["npu"]).files


def test_a_dry_run_lists_the_files(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["push", str(done), "me/student", "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["repository"], said["address"]) == ("me/student", None)
    assert said["bytes"] == sum(said["files"].values())
    assert call(["push", str(done), "me/student", "--dry-run"]) == 0
    assert "nothing sent" in capsys.readouterr().out


def test_an_edited_card_goes_and_a_damaged_weight_does_not(done: Path) -> None:
    (done / "student" / "README.md").write_text("# Mine")
    assert upload_of(done, "me/student")
    weights = done / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        upload_of(done, "me/student")


def test_what_is_refused(done: Path) -> None:
    with pytest.raises(UsageError, match="no name of a repository"):
        upload_of(done, "a/b/c")
    with pytest.raises(UsageError, match="no export 'web'; it has cpu, npu"):
        upload_of(done, "me/student", ["web"])
    (done / "status.json").unlink()
    with pytest.raises(UsageError, match="is planned, not done"):
        upload_of(done, "me/student")


def test_a_hub_that_does_not_answer_is_named(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", "http://127.0.0.1:9")
    assert call(["push", str(done), "me/student"]) == 2
    assert "the hub http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
