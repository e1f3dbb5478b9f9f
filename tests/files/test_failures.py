"""What counts as memory that ran out and storage that failed, from which library it comes and how it is wrapped."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from xarch.errors import Interrupted, OutOfMemoryError, PluginError, StorageError, UsageError
from xarch.failures import as_error, is_out_of_memory, translated
from xarch.files import run_dir
from xarch.files.atomic import append_text, new_folder, save_tensors, write_text
from xarch.files.run_dir import RunDir
from xarch.registry.blame import plugin_errors

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def raised(cause: BaseException, outer: BaseException) -> BaseException:
    try:
        raise outer from cause
    except type(outer) as e:
        return e


def huge_tensor() -> object:
    return torch.empty(1 << 60, dtype=torch.uint8)


def huge_bytes() -> object:
    return bytearray(1 << 62)


@pytest.mark.parametrize("allocate", [huge_tensor, huge_bytes])
def test_a_real_shortage_is_one(allocate) -> None:
    with pytest.raises(OutOfMemoryError) as caught, translated("xarch convert --resume --out r"):
        allocate()
    assert caught.value.exit_code == 75
    assert "xarch convert --resume --out r" in str(caught.value.hint)


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while deserializing: I/O error: Cannot allocate memory (os error 12)"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
        RuntimeError("unable to mmap 180568 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        raised(MemoryError(), UsageError("x does not fit its config.json")),
        raised(raised(MemoryError(), ValueError("wrapped")), UsageError("wrapped again")),
    ],
)
def test_a_shortage_is_known_in_any_wrapping(error: BaseException) -> None:
    assert is_out_of_memory(error)
    found = as_error(error)
    assert isinstance(found, OutOfMemoryError)
    with pytest.raises(type(error)), plugin_errors("plugin"):
        raise error


@pytest.mark.parametrize("error", [ValueError("out of memory"), KeyError("bad_alloc"), UsageError("out of memory")])
def test_words_alone_are_no_shortage(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_an_error_for_the_user_is_not_about_what_was_handled_before() -> None:
    error = UsageError("a missed gate")
    error.__context__ = MemoryError()
    assert not is_out_of_memory(error)


@needs_full
def test_a_full_disk_is_named_by_who_writes() -> None:
    with pytest.raises(StorageError, match=r"No space left on device: /dev/full \(errno 28, ENOSPC\)") as caught:  # noqa: SIM117
        with translated("xarch convert --resume --out r"):
            append_text(FULL, "x")
    assert isinstance(caught.value, Interrupted)
    assert caught.value.exit_code == 130
    assert caught.value.hint == "free space on that disk, then xarch convert --resume --out r"


def test_the_errors_of_safetensors_are_those_of_the_system(tmp_path: Path) -> None:
    """Its own kind of error is no OSError."""
    path = tmp_path / "absent" / "model.safetensors"
    with pytest.raises(FileNotFoundError) as caught:
        save_tensors({"w": torch.zeros(4)}, path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EMFILE])
def test_no_plugin_is_blamed_for_storage(number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)), plugin_errors("plugin"):
        raise OSError(number, os.strerror(number), "/there")
    found = as_error(OSError(number, os.strerror(number), "/there"), "again")
    assert isinstance(found, StorageError)
    assert f"/there (errno {number}, {errno.errorcode[number]})" in found.what


def test_a_plugin_that_looks_in_the_wrong_place_is_blamed() -> None:
    with pytest.raises(PluginError, match="FileNotFoundError"), plugin_errors("plugin"):
        open("/nowhere/at/all")  # noqa: SIM115


@pytest.mark.parametrize("error", [ConnectionError(111, "refused"), OSError("no errno"), ZeroDivisionError()])
def test_other_errors_are_not_about_storage(error: Exception) -> None:
    assert as_error(error) is None


def test_a_wrapped_full_disk_stays_one() -> None:
    found = as_error(raised(OSError(errno.ENOSPC, "full"), UsageError("cannot write /there/model", "elsewhere")))
    assert isinstance(found, StorageError)
    assert found.what == "cannot write /there/model (errno 28, ENOSPC)"


def test_errors_of_a_descriptor_get_the_name_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_text(tmp_path / "a.json", "{}")
    assert caught.value.filename == str(tmp_path / "a.json")
    with pytest.raises(OSError, match="No space") as caught, new_folder(tmp_path / "folder") as part:
        (part / "x").write_text("")
    assert caught.value.filename == str(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_a_status_is_written_over_the_old_one_when_no_file_can_be_added(tmp_path: Path, monkeypatch) -> None:
    run = RunDir(tmp_path)
    run.set_status("running", reason="a long reason that is gone afterwards" * 9)

    def full(path: Path, data: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(run_dir, "write_text", full)
    run.set_status("interrupted", reason="full")
    assert json.loads(run.status.read_text())["state"] == run.state() == "interrupted"
    run.status.unlink()
    with pytest.raises(OSError, match="No space"):
        run.set_status("interrupted")


def test_a_name_that_is_too_long_is_a_mistake_of_who_gave_it(tmp_path: Path) -> None:
    """It ended as a storage error, or as a fault of the plugin that opened it."""
    with pytest.raises(UsageError, match=r"too long.*\(\d{4} characters\)") as caught, translated("xarch plan"):
        (tmp_path / ("a" * 5000)).read_text()
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 300
    with pytest.raises(UsageError, match="too long"), translated(), plugin_errors("plugin 'x'"):
        (tmp_path / ("a" * 5000)).stat()
