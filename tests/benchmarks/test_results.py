"""Results are measured apart from the published ones, resumed only where nothing changed, and all in the tables."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page, store, tables
from benchmarks.store import Result, Store, command, folded, publish, read, unfolded
from benchmarks.tables.robustness import UNWANTED
from benchmarks.tables.row import grouped, mean, of, spread

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
    program, *arguments = result.header["command"].split()
    module = arguments[1].replace(".", "/") if arguments[0] == "-m" else ""
    file = f"{module}/__main__.py" if module else arguments[program == "xarch"]
    assert program in ("python", "xarch")
    assert (store.ROOT / file).is_file(), "the command does not run in a clone"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result.header["date"])
    assert len(path.read_text(encoding="utf-8").splitlines()) < len(result.points) + 40
    assert tables.rows(result)
    assert not store.LOCAL.search(result.text())


def test_seeds_are_folded_and_found_again() -> None:
    points = [{"arm": arm, "seed": seed, "loss": seed / 2} for seed in (0, 1) for arm in "ab"]
    points.append({"arm": "teacher", "loss": 1.0})
    once = folded(points)
    assert once[0] == {"arm": "a", "seed": [0, 1], "loss": [0.0, 0.5]}
    assert len(once) == 3
    assert sorted(map(str, unfolded(once))) == sorted(map(str, points))


def test_all_results_together_stay_small() -> None:
    texts = [path.read_text(encoding="utf-8") for path in PUBLISHED]
    assert sum(len(t.splitlines()) for t in texts) < 2500
    assert sum(len(t.encode()) for t in texts) < 700_000


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
    (row,) = tables.kernels.kernels(Result(HEADER, {}, points))
    assert row.rival.startswith("fast 2000 CPU ms (2.0×)")


def readme(command: str) -> str:
    """The row of README's table of measurements that a command measured."""
    text = (store.ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith("|") and line.endswith(f"| `{command}` |"))
    return row


def test_every_figure_of_the_readme_has_its_check_here() -> None:
    text = (store.ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("\n## Measured\n")[2].partition("\n\n**")[0]
    commands = [line.split("|")[-2].strip(" `") for line in table.splitlines() if line.startswith("| ")][1:]
    assert set(commands) == {SMOLLM2, FIELDS, KERNELS}


SMOLLM2 = "python benchmarks/smollm2_hybrid.py"
FIELDS = "python benchmarks/fields/any_to_any.py"
KERNELS = "python -m benchmarks.kernels --threads 1 --lengths 2048"


def test_the_readme_says_what_the_result_of_smollm2_says() -> None:
    points = read(store.RESULTS / "smollm2_hybrid.json").points
    after, before = (of(points, side, "perplexity_ratio") for side in ("student", "before_training"))
    row = readme(SMOLLM2)
    assert f"perplexity {spread(after, 3)} times the teacher's" in row
    assert f"{spread(before, 3)} before training" in row
    assert f"{len(points)} seeds" in row


def test_the_readme_says_what_the_result_of_the_fields_says() -> None:
    result = read(store.RESULTS / "fields_any_to_any.json")
    teachers, row = result.facts["teachers"], readme(FIELDS)
    other = [p for p in result.points if p["source"] != p["target"]]
    pairs = grouped(other, "source", "target")
    gain = [
        float(mean(of(at, "psnr_truth"))) - round(teachers[source]["psnr_truth"], 1)
        for (source, _), at in pairs.items()
    ]
    psnr, seconds = spread(of(other, "psnr_teacher")), spread(of(other, "cpu_seconds"), 0)
    assert f"{len(pairs)} pairs of different kinds" in row
    assert f"{psnr} dB to the teacher in {seconds} CPU seconds" in row
    trained = [t["cpu_seconds"] for t in teachers.values()]
    assert f"trained in {spread(trained, 0)} s before" in row
    assert f"{-min(gain):.1f} dB below to {max(gain):.1f} above" in row


def test_the_readme_says_what_the_result_of_the_kernels_says() -> None:
    result = read(store.RESULTS / "kernels_cpu_2048.json")
    at = [p for p in result.points if (p["op"], p["shape"], p["length"]) == ("ssd", "dm2-smollm2-135m", 2048)]
    timed = [p for p in at if "cpu_seconds" in p.get("forward_backward", {})]
    (ours,) = (p["forward_backward"] for p in timed if p["default"])
    rival = min((p for p in timed if not p["ours"]), key=lambda p: p["forward_backward"]["cpu_seconds"])
    row = readme(KERNELS)
    assert f"| {1e3 * ours['cpu_seconds']:.0f} CPU ms |" in row
    assert f"| {1e3 * rival['forward_backward']['cpu_seconds']:.0f} CPU ms, " in row
    assert f"`{rival['contender'].rpartition('.')[2]}`" in row
    assert "the fastest peer" in row


def test_the_readme_says_what_the_faults_and_mutated_inputs_say() -> None:
    text = (store.ROOT / "README.md").read_text(encoding="utf-8")
    said = " ".join(text.partition("\nFaults: ")[2].partition("\n\n")[0].split())
    points = read(store.RESULTS / "faults.json").points
    kinds, outcomes = Counter(of(points, "kind")), Counter(of(points, "outcome"))
    assert f"put {len(points)} into" in said
    assert f"{kinds['kill']} SIGKILL, {kinds['term']} SIGTERM" in said
    assert f"{outcomes['as undisturbed']} resumed" in said
    assert f"{outcomes['named']} flips named" in said
    assert outcomes.keys() == {"as undisturbed", "named"}, "none was lost, it says"
    mutated = read(store.RESULTS / "fuzz.json").points
    tried = sum(sum(of(mutated, kind)) for kind in ("refused", "accepted"))
    assert f"Of {tried:,} mutated inputs" in said
    assert not any(sum(of(mutated, kind)) for kind in UNWANTED), "none ended badly, it says"


OURS = "memory int8"
CONSTANT = "\nSmolLM2-135M, all 30 layers in 168 kB"
"""Where the README begins to speak of constant states."""


def test_the_readme_says_what_the_constant_states_say() -> None:
    text = (store.ROOT / "README.md").read_text(encoding="utf-8")
    said = " ".join(text.partition(CONSTANT)[2].partition("\n\n")[0].split())
    points = read(store.RESULTS / "constant_state.json").points
    at = grouped([p for p in points if (p["layers"], p["context"]) == ("30 of 30", 2048)], "domain")
    kl = {domain: {p["arm"]: p["kl"] for p in of_domain} for (domain,), of_domain in at.items()}
    ratio = {p["domain"]: p["ratio"] for p in points if p["arm"] == OURS and p["context"] == 2048}
    domains = ("code", "prose", "wikitext")
    ours = [kl[domain].pop(OURS) for domain in domains]
    assert "{:.3f} on code, {:.3f} on prose, {:.3f} on WikiText-2".format(*ours) in said
    assert "(perplexity {:.3f}, {:.3f}, {:.3f} times)".format(*(ratio[domain] for domain in domains)) in said
    rivals = [min((value, arm) for arm, value in kl[domain].items()) for domain in domains]
    assert {arm for _, arm in rivals} == {"H2O int8"}
    assert "H2O in int8, {:.3f}, {:.3f}, {:.3f}.".format(*(value for value, _ in rivals)) in said


def test_the_readme_says_how_fast_a_constant_state_is() -> None:
    text = (store.ROOT / "README.md").read_text(encoding="utf-8")
    said = " ".join(text.partition(CONSTANT)[2].partition("\n\n")[0].split())
    points = [p for p in read(store.RESULTS / "edge_speed.json").points if p["precision"] == "int4"]
    rival = [p for p in points if p["arm"].endswith("genai")]
    ours = {f"{p['decode_cpu_ms']:.0f}" for p in points if p["arm"].startswith("memory")}
    states = {round(p["state_bytes"] / 1e6) for p in points if p["arm"].startswith("memory")}
    assert [
        f"In int4 a token takes {ms} CPU ms at any context and the state {mb} MB" in said
        for ms in ours
        for mb in states
    ] == [True]
    assert "{:.0f}, {:.0f}, {:.0f}, {:.0f} ms".format(*(p["decode_cpu_ms"] for p in rival)) in said
    assert f"{rival[0]['state_bytes'] / 1e6:.0f} to {rival[-1]['state_bytes'] / 1e6:.0f} MB" in said


def test_the_readmes_figures_from_notes_are_in_the_notes() -> None:
    text = (store.ROOT / "README.md").read_text(encoding="utf-8")
    said = text.partition("**The first figure has an untrained rival")[2].partition("(from notes)")[0]
    notes = page.NOTES.read_text(encoding="utf-8")
    for figure in re.findall(r"\d+\.\d+|\b\d{2,}\b", said):
        assert figure in notes, figure


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda p: p.stem)
def test_the_digest_of_a_published_result_is_that_of_its_settings(path: Path) -> None:
    header = read(path).header
    assert header["digest"] == hashlib.sha256(json.dumps(header["settings"], sort_keys=True).encode()).hexdigest()[:12]
    assert header.get("commit") or header.get("added"), "neither a commit nor the one that added the file is recorded"


FIELD_BENCHMARKS = ("round_trips", "staged", "any_to_any", "active_levels", "edited", "speed_up", "exported")


@pytest.mark.parametrize("name", FIELD_BENCHMARKS)
def test_a_benchmark_measures_apart_from_the_published_results(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With its default options it opens a store in the scratch folder that knows none of the published points."""
    module = importlib.import_module(f"benchmarks.fields.{name}")
    before = {path: path.read_bytes() for path in PUBLISHED}
    opened: list[Store] = []

    class Stopped(Exception):
        pass

    class First(Store):
        def __init__(self, path: Path, header: dict[str, Any], fresh: bool = False) -> None:
            assert path.parent == store.SCRATCH
            super().__init__(tmp_path / path.name, header, fresh)
            opened.append(self)
            raise Stopped

    monkeypatch.setattr(module, "Store", First)
    monkeypatch.setattr("sys.argv", [str(module.__file__)])
    monkeypatch.setattr("xarch_pvd.train.demo.demo_field", lambda: tmp_path / "demo")
    monkeypatch.setenv("XARCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if hasattr(module, "Judge"):
        monkeypatch.setattr(module, "Judge", lambda: None)
    with pytest.raises(Stopped):
        module.main()
    assert not opened[0].points
    assert opened[0].result.header["date"] == store.today()
    assert not opened[0].result.header["finished"]
    assert {path: path.read_bytes() for path in PUBLISHED} == before


@pytest.mark.parametrize("name", ["README.md", "benchmarks/notes.md", "benchmarks/RESULTS.md"])
def test_commands_of_the_documents_exist(name: str) -> None:
    text = (store.ROOT / name).read_text(encoding="utf-8")
    for script in re.findall(r"python (benchmarks/[\w/]+\.py)", text):
        assert (store.ROOT / script).is_file(), script
