"""Mutations of bytes, of text and of trees of plain data; every choice comes from one seeded generator."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

Place = tuple[Any, Any]
"""(container, key or index) of a value in a tree."""

NUMBERS = (0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 10**18, 10**30, 10**400)
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-320, 1e30, -1e30, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "x",
    "a" * 5000,
    "\x1b]0;t\x07\x1b[31m",
    "\u202ex\u2066",
    "\x00",
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "nan",
    "1e999",
    "-1",
    "2M",
    "9" * 400,
    "{{ 7 * 7 }}",
    "%s%n",
    "hf:x",
    "*",
    "a.b.c",
    "null",
)


def deep(levels: int, kind: str = "list") -> Any:
    """A value nested so many levels deep."""
    value: Any = 1
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


def odd(rng: random.Random) -> Any:
    """A value that nobody expects: of the wrong type, absurdly large, empty, deep."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(NUMBERS) * rng.choice((1, -1))
    if kind == 1:
        return rng.choice(FLOATS)
    if kind == 2:
        return rng.choice(TEXTS)
    if kind == 3:
        return rng.choice((None, True, False))
    if kind == 4:
        return rng.choice(([], {}, [[]], [None], {"": ""}, [{}] * 3))
    if kind == 5:
        return deep(rng.choice((3, 60, 300)), rng.choice(("list", "map")))
    if kind == 6:
        return [rng.choice(NUMBERS[:10])] * rng.choice((1, 2, 3, 6, 12, 1000))
    return rng.uniform(-1, 1) * 10 ** rng.randrange(-6, 12)


def places(tree: Any) -> Iterator[Place]:
    """Every place of a tree, parents first."""
    waiting = [tree]
    while waiting:
        value = waiting.pop(0)
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            yield value, key
            waiting.append(value[key])


def tree(rng: random.Random, data: Any, changes: int | None = None) -> Any:
    """A copy of plain data with a few changes."""
    data = copy.deepcopy(data)
    for _ in range(changes or rng.choice((1, 1, 1, 2, 3, 6))):
        found = list(places(data))
        if not found:
            return odd(rng)
        holder, key = rng.choice(found)
        kind = rng.randrange(10)
        if kind < 4:
            holder[key] = odd(rng)
        elif kind == 4:
            del holder[key]
        elif kind == 5:
            other, name = rng.choice(found)
            value = other[name] if _has(other, name) else None
            holder[key] = copy.deepcopy(value)
        elif kind == 6 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        elif kind == 7:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
        elif kind == 8 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = holder[key] * rng.choice((-1, 0, 2, 3, 1000, 10**6, 10**12))
        elif kind == 9 and isinstance(holder[key], list):
            holder[key] = holder[key] * rng.choice((0, 2, 5)) if rng.random() < 0.5 else holder[key][:-1]
        else:
            holder[key] = odd(rng)
    return data


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def as_json(data: Any) -> str:
    """JSON as other programs write it: with NaN and Infinity. Numbers too long for Python to print become shorter."""
    try:
        return json.dumps(data)
    except (ValueError, RecursionError):
        return "[" * 500 + "]" * 500


def content(rng: random.Random, data: bytes) -> bytes:
    """A copy of bytes with a few changes: flips, cuts, insertions, repeats, extreme lengths."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not changed:
            return bytes(rng.randbytes(rng.randrange(40)))
        # The beginning of a file decides most about it.
        limit = len(changed) if rng.random() < 0.5 else min(len(changed), 512)
        at, kind = rng.randrange(limit), rng.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 4:
            del changed[at : at + rng.choice((1, 4, 64))]
        elif kind == 5:
            form, most = rng.choice((("<I", 2**32), ("<Q", 2**64), (">I", 2**32)))
            value = struct.pack(form, rng.choice(NUMBERS[:14]) % most)
            changed[at : at + len(value)] = value
        else:
            piece = changed[at : at + rng.choice((1, 8, 100))]
            changed[at:at] = piece * rng.choice((1, 3, 50))
    return bytes(changed)


def text(rng: random.Random, data: str) -> bytes:
    """Mutated text: as bytes, or with words exchanged for odd ones."""
    if rng.random() < 0.5:
        return content(rng, data.encode("utf-8"))
    words = data.split(" ")
    for _ in range(rng.choice((1, 2, 5))):
        words[rng.randrange(len(words))] = str(rng.choice((rng.choice(TEXTS), rng.choice(NUMBERS[:14]), "[", "{", ":")))
    return " ".join(words).encode("utf-8", "surrogatepass")
