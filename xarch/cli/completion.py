"""``xarch completion``: completion of commands and of the names that plugins register, for a shell."""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem, get_completion_class

from xarch.cli.session import Session, define
from xarch.errors import XarchError

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_XARCH_COMPLETE"

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names(*kinds: str, suffix: str = "", files: bool = False) -> Completer:
    """Return what completes the names of registered kinds.

    Args:
        suffix: follows each name, e.g. ":" where a reference goes on.
        files: complete paths where no name fits; bash completes the one or the other.
    """

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from xarch.registry.loader import get_registry

        try:
            registry = get_registry()
            found = {s.name: s.summary for kind in kinds for s in registry.specs(kind)}
        except XarchError:  # a broken plugin is for `xarch plugins` to tell, not for the Tab key
            found = {}
        known = [CompletionItem(f"{name}{suffix}", help=found[name]) for name in sorted(found)]
        items = [item for item in known if item.value.startswith(incomplete)]
        return items or ([CompletionItem(incomplete, type="file")] if files else [])

    return complete


@define("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def command(session: Session, shell: str) -> None:
    """Print the script that completes commands, recipes, methods, targets and profiles in SHELL.

    For bash, add `eval "$(xarch completion bash)"` to ~/.bashrc; for zsh, the same with zsh to ~/.zshrc; for fish, save
    it as ~/.config/fish/completions/xarch.fish.
    """
    from xarch.cli.app import cli

    made = get_completion_class(shell)
    assert made is not None, "click knows these shells"
    script = made(cli, {}, "xarch", VARIABLE).source()
    session.emit({"shell": shell, "script": script}, lambda _: click.echo(script))
