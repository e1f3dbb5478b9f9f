"""What other people wrote reaches the terminal and the log as text: no control character, nothing that reorders it."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import warnings
from pathlib import Path

import pytest

from tests.cli.cli_process import Ended, Xarch
from tests.registry.fake_dist import Site, registering
from xarch.cli.console import make_console, progress_bar
from xarch.cli.document_view import show_document
from xarch.cli.session import _log_to_stderr
from xarch.cli.tables import table
from xarch.cli.ui import LineReporter
from xarch.files.atomic import write_json
from xarch.files.run_dir import RunDir
from xarch.printable import clean, escaped, log_line

ROOT = Path(__file__).parents[2]
TITLE, COLOUR, C1, BIDI, OTHER = "\x1b]0;t\x07", "\x1b[31m", "\x9b31m\x90", "\u202e\u2066\u2029", "\x08\x7f\x0c\rX"
HOSTILE = f"a{TITLE}{COLOUR}{C1}{BIDI}{OTHER}b[/x][link=http://h]c[/link]"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(ended: Ended) -> Ended:
    shown = ended.out + ended.err
    assert not RAW.search(shown), RAW.findall(shown)
    return ended


@pytest.mark.parametrize("part", [TITLE, COLOUR, C1, BIDI, OTHER, "\udcff"])
def test_every_unsafe_character_is_replaced_and_nothing_else(part: str) -> None:
    assert not RAW.search(clean(f"a{part}b"))
    assert clean({f"k{part}": [f"v{part}", 1]}) == {clean(f"k{part}"): [clean(f"v{part}"), 1]}
    kept = "tab\tline\r\nend\n naïve 你好 שלום 👩‍👩‍👧"
    assert clean(kept) == kept


def test_json_loses_nothing(tmp_path: Path) -> None:
    data = {HOSTILE: [HOSTILE, "\udcff"]}
    text = escaped(json.dumps(data, ensure_ascii=False))
    assert not RAW.search(text)
    assert json.loads(text) == data
    write_json(tmp_path / "a.json", data)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == data


@pytest.mark.parametrize("flags", [(), ("--json",), ("-v",)])
def test_names_in_errors(here: Xarch, tmp_path: Path, flags: tuple[str, ...]) -> None:
    for arguments in (
        ("plan", "--teacher", f"nope:{HOSTILE}", "--to", "dm2", "--data", "text:x"),
        ("plan", HOSTILE),
        ("inspect", str(tmp_path / HOSTILE.replace("/", ""))),
        ("report", HOSTILE),
        (HOSTILE,),
        ("plan", f"--{HOSTILE}"),
        ("plan", "--set", f"{HOSTILE}=1"),
    ):
        assert harmless(here(*arguments, *flags)).code == 2


def test_keys_of_a_configuration(here: Xarch, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text('"stages\\e]0;x\\a\\x9b31m\\u202e": 1\n')
    ended = harmless(here("plan", str(file)))
    assert "unknown key" in ended.err


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_summaries_of_plugins(here: Xarch, site: Site, flags: tuple[str, ...]) -> None:
    body = f"registry.source('odd', load='m:S', produces='x', summary={HOSTILE!r})"
    site.install("odd-plugin", "odd_plugin", registering(body))
    site.install("bad-plugin", "bad_plugin", f"raise ValueError({HOSTILE!r})")
    for arguments in (("list", "sources"), ("list", "plugins"), ("plugins",), ("plugins", "list", "-v")):
        ended = harmless(here(*arguments, *flags))
        assert "odd" in ended.out


def test_a_console_sends_only_its_own_escapes() -> None:
    """On a terminal: styles and cursor movements of rich, and no text that is taken for markup."""
    stream = io.StringIO()
    console = make_console(stream)
    console._force_terminal = True
    console.print(table([HOSTILE], [[HOSTILE]]))
    console.print(HOSTILE, style="bold")
    show_document({HOSTILE: HOSTILE, "list": [{HOSTILE: [HOSTILE]}], "map": {HOSTILE: 1}}, console)
    with console.status(HOSTILE):
        pass
    with progress_bar(console) as bar:
        bar.add_task(HOSTILE, total=2)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "")
    assert "[/x]" in shown
    assert not RAW.search(shown), RAW.findall(shown)
    assert "\x1b[31m" not in stream.getvalue()


def test_progress_lines(tmp_path: Path) -> None:
    stream = io.StringIO()
    reporter = LineReporter(make_console(stream))
    reporter.message(HOSTILE)
    reporter.stage_started(1, 1, HOSTILE, HOSTILE, 3)
    assert not RAW.search(stream.getvalue())


def test_a_log_entry_cannot_be_forged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.say(f"{HOSTILE}\n2026-01-01T00:00:00 done\udcff")
    lines = run.log.read_text(encoding="utf-8").split("\n")
    assert not RAW.search("".join(lines))
    assert len(lines) == 3
    assert lines[1].startswith("    2026")
    assert log_line("plain") == "plain"


def test_records_and_warnings_of_libraries(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with warnings.catch_warnings():
        logging.captureWarnings(False)
        _log_to_stderr(logging.WARNING)
        warnings.simplefilter("always")
        logging.getLogger("lib").warning("%s", HOSTILE)
        warnings.warn(HOSTILE, stacklevel=1)
        logging.captureWarnings(False)
    shown = capsys.readouterr().err
    assert shown.count("[/x]") >= 2
    assert not RAW.search(shown)


def test_one_home_for_what_is_shown() -> None:
    """No module builds a console of its own, prints to standard error, or turns markup on for text with values;
    programs for devices run without xarch."""
    wrong = []
    for file in [*(ROOT / "xarch").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        if file.name in ("printable.py", "console.py") or file.parent.name == "device":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            if not re.search(r"(Console|Progress|print|stderr\.write)$", ast.unparse(node.func)):
                continue
            text = ast.unparse(node)
            if re.match(
                r"(rich\.console\.)?Console\(|rich\.progress\.Progress\(|print\(.*stderr|sys\.stderr\.write", text
            ) or (re.match(r"\w*console\.print\(", text) and "markup=True" in text):
                wrong.append(f"{file.relative_to(ROOT)}: {text[:80]}")
    assert not wrong
