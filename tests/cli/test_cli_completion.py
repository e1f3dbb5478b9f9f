"""The Tab key knows commands and what plugins register."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from xarch.cli.app import cli
from xarch.cli.completion import SHELLS, VARIABLE


def completed(*words: str) -> set[str]:
    """What is offered for the last word."""
    found = BashComplete(cli, {}, "xarch", VARIABLE).get_completions(list(words[:-1]), words[-1])
    return {item.value for item in found if item.type == "plain"}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("con",), {"convert"}),
        (("convert", "smollm2-h"), {"smollm2-hybrid"}),
        (("plan", "--method", "no-t"), {"no-teacher"}),
        (("convert", "--to", "dm"), {"dm2"}),
        (("convert", "--teacher", "gg"), {"gguf:"}),
        (("convert", "--data", "tex"), {"text:"}),
        (("export", "run", "--profile", "npu-"), {"npu-fp16", "npu-int8"}),
        (("completion", "z"), {"zsh"}),
    ],
)
def test_names_are_offered(words: tuple[str, ...], offered: set[str]) -> None:
    assert completed(*words) == offered


def test_no_command_has_an_option_twice() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        flags = [flag for option in command.params for flag in option.opts if flag.startswith("-")]
        assert len(flags) == len(set(flags)), name


def test_files_are_offered_where_no_name_fits() -> None:
    found = BashComplete(cli, {}, "xarch", VARIABLE).get_completions(["convert"], "./smo")
    assert [item.type for item in found] == ["file"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_the_printed_script(tmp_path: Path) -> None:
    command = tmp_path / "xarch"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m xarch "$@"\n')
    command.chmod(0o755)
    program = (
        'eval "$(xarch completion bash)"; COMP_WORDS=(xarch convert smollm2-h); COMP_CWORD=2; '
        '_xarch_completion xarch; echo "${COMPREPLY[0]}"'
    )
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "smollm2-hybrid\n", done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    from xarch.cli.app import run

    assert run(["completion", shell]) == 0
    assert VARIABLE in capsys.readouterr().out
