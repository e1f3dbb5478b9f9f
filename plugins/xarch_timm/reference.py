"""References to timm models: ``NAME?key=value&key=value``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote

from pydantic import AfterValidator

from xarch import UsageError

OWN = ("checkpoint", "pretrained", "size", "channels", "classes", "mean", "std", "labels", "allow_pickle")
"""Keys that xarch reads; all others are arguments of ``timm.create_model``."""
File = Annotated[str, AfterValidator(lambda text: str(Path(text).expanduser()))]
"""A path, in which ~ is the user's folder."""


@dataclass(frozen=True)
class Reference:
    """A parsed reference.

    Attributes:
        name: name of the model in timm, maybe with a tag of pretrained weights ("resnet18.a1_in1k").
        own: values of :data:`OWN` that are given.
        arguments: further arguments of the model.
    """

    name: str
    own: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)


def parse(text: str) -> Reference:
    """Parse ``NAME?key=value&…``; values are words, numbers, and lists with commas.

    Raises:
        UsageError: a part is not KEY=VALUE, or there is no such model.
    """
    name, _, query = text.partition("?")
    given: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise UsageError(f"timm:{text}: {part!r} is not KEY=VALUE", f"timm:{name}?checkpoint=FILE&size=32")
        value = unquote(value)
        given[key] = value if key == "checkpoint" else _value(value)
    known(name)
    own = {key: value for key, value in given.items() if key in OWN}
    return Reference(name, own, {key: value for key, value in given.items() if key not in OWN})


def _value(text: str) -> Any:
    """Return a number, truth value, null or word, or a list of them separated by commas."""
    if "," in text:
        return [_value(part) for part in text.split(",")]
    words = {"true": True, "false": False, "null": None, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def image_size(given: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (height, width) of an option ``size``."""
    return (given, given) if isinstance(given, int) else given


def known(name: str) -> None:
    """Check that timm has a model.

    Raises:
        UsageError: it does not; the hint lists similar names.
    """
    import difflib

    import timm

    if not name:
        raise UsageError("no timm model named", "timm:resnet18; `python -c 'import timm; print(timm.list_models())'`")
    if not timm.is_model(name):  # looks up the part before the dot
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 3)
        raise UsageError(
            f"timm {timm.__version__} has no model {name!r}",
            f"did you mean {', '.join(near)}?" if near else "`python -c 'import timm; print(timm.list_models())'`",
        )
