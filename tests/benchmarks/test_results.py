"""Results are measured apart from the published ones, resumed only where nothing changed, and all in the tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page, rows, store
from benchmarks.store import Result, Store, command, publish, read

HEADER: dict[str, Any] = {
    "benchmark": "streamed_memory",
    "command": "python benchmarks/streamed_memory.py",
    "date": "2026-01-01",
    "commit": "0123456789ab",
    "settings": {"tokens": 2048},
    "digest": "d",
    "code": "c",
    "machine": {"device": "a CPU", "threads": 1},
    "versions": {"torch": "2"},
}
POINT = {"layers": 2, "streamed_mib": 100.0, "summed_mib": 200.0}
PUBLISHED = sorted(store.RESULTS.glob("*.json"))


def measured(path: Path, header: dict[str, Any] = HEADER) -> Store:
    made = Store(path, header)
    made.add(POINT)
    made.finish()
    return made


def test_the_page_is_that_of_the_published_results() -> None:
    text = page.markdown(page.published(), page.NOTES.read_text(encoding="utf-8"))
    assert page.PAGE.read_text(encoding="utf-8") == text, "run `python -m benchmarks results`"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_a_published_result_has_the_one_format_and_says_what_was_measured(path: Path) -> None:
    result = read(path)
    assert path.read_text(encoding="utf-8") == result.text()
    assert set(HEADER) <= set(result.header)
    assert result.header["command"].startswith("python ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result.header["date"])
    assert len(path.read_text(encoding="utf-8").splitlines()) < len(result.points) + 40
    assert rows.rows(result)
    assert not store.LOCAL.search(result.text())


def test_all_results_together_stay_small() -> None:
    texts = [path.read_text(encoding="utf-8") for path in PUBLISHED]
    assert sum(len(t.splitlines()) for t in texts) < 2500
    assert sum(len(t.encode()) for t in texts) < 350_000


def test_nothing_is_measured_into_the_published_results() -> None:
    with pytest.raises(SystemExit, match="published"):
        Store(PUBLISHED[0], HEADER)


@pytest.mark.parametrize("key", ["settings", "digest", "code", "machine", "versions", "benchmark"])
def test_a_measurement_of_something_else_starts_anew(tmp_path: Path, key: str) -> None:
    path = tmp_path / "r.json"
    measured(path)
    assert not Store(path, HEADER | {key: "other"}).points


def test_a_result_that_needs_no_new_point_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    measured(path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    again = Store(path, HEADER | {"date": "2026-02-02", "commit": "another"})
    again.note()
    assert again.find(layers=2) == POINT
    again.finish()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_publishing_takes_finished_results_without_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "RESULTS", tmp_path / "results")
    path = tmp_path / "r.json"
    made = Store(path, HEADER)
    with pytest.raises(SystemExit, match="nothing was measured"):
        publish("r", path)
    made.add(POINT)
    with pytest.raises(SystemExit, match="unfinished"):
        publish("r", path)
    assert publish("r", path, partial=True).is_file()
    made.finish()
    assert read(publish("r", path)).points == [POINT]
    made.add({"status": "failed: no such file: /home/somebody/x"})
    with pytest.raises(SystemExit, match="folder of this machine"):
        publish("r", path, partial=True)


def test_one_point_is_one_line() -> None:
    lines = Result(HEADER, {"a": 1}, [POINT, POINT]).text().splitlines()
    assert sum(json.loads(line.rstrip(",")) == POINT for line in lines if line.startswith('{"layers"')) == 2


def test_the_recorded_command_has_no_folders_of_the_machine() -> None:
    script = str(store.ROOT / "benchmarks" / "fields" / "edited.py")
    assert command([script, "--work", "/data/w", "--seeds", "0", "--fresh", "--out=/data/x.json"]) == (
        "python benchmarks/fields/edited.py --seeds 0"
    )
    assert command([script, "--scene", "/data/lego"]) == "python benchmarks/fields/edited.py --scene lego"
    module = str(store.ROOT / "benchmarks" / "kernels" / "__main__.py")
    assert command([module, "--threads", "1"]) == "python -m benchmarks.kernels --threads 1"


def test_a_study_needs_no_table_of_its_own() -> None:
    point = {"what": "mohawk, anarchism", "figure": 1.2, "spread": "1.1–1.3", "seeds": 3, "rival": "window 1.02"}
    result = Result(HEADER | {"benchmark": "quality", "finished": True}, {}, [point])
    assert "| mohawk, anarchism | 1.2 | 1.1–1.3 | 3 | window 1.02 |" in page.section("quality", result)


def test_a_wrong_contender_or_one_of_ours_is_no_rival() -> None:
    def point(contender: str, seconds: float | None, ours: bool = False) -> dict[str, Any]:
        timed = {"seconds": seconds, "median_seconds": seconds, "cpu_seconds": seconds, "repeats": 3}
        both = {"peak_mib": 1.0, "floor_seconds": 0.1, "bound": "exp", **(timed if seconds else {})}
        base = {"op": "ssd", "shape": "s", "length": 8, "contender": contender, "ours": ours, "default": ours}
        return base | {"forward_backward": both}

    points = [point("cpp", 1.0, ours=True), point("wrong", None), point("slow", 4.0), point("fast", 2.0)]
    (row,) = rows.kernels(Result(HEADER, {}, points))
    assert row.rival.startswith("fast 2000 CPU ms (2.0×)")


@pytest.mark.parametrize("name", ["README.md", "benchmarks/notes.md", "benchmarks/RESULTS.md"])
def test_commands_of_the_documents_exist(name: str) -> None:
    text = (store.ROOT / name).read_text(encoding="utf-8")
    for script in re.findall(r"python (benchmarks/[\w/]+\.py)", text):
        assert (store.ROOT / script).is_file(), script
