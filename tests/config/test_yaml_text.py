"""YAML gives plain values with lines; bombs, tags and duplicates are refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xarch.config.yaml_text import MAX_BYTES, dump_yaml, parse_yaml
from xarch.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5E4", 5e4),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2.e3", -2000.0),
        ("2_000_000", 2_000_000),
        ("0x10", 16),
        ("-7", -7),
        ("007", 7),
        ("true", True),
        ("off", "off"),
        ("yes", "yes"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("null", None),
        ("~", None),
        ("", {}),
        ("e5", "e5"),
        ("text:a/b", "text:a/b"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_scalars(text: str, value: object) -> None:
    got = parse_yaml(text, "x").data
    assert got == value
    assert type(got) is type(value)


def test_lines_of_keys_and_items() -> None:
    doc = parse_yaml("a: 1\nb:\n  c:\n    - x\n    - d: 2\n", "run.yaml")
    assert doc.lines == {
        ("a",): 1,
        ("b",): 2,
        ("b", "c"): 3,
        ("b", "c", 0): 4,
        ("b", "c", 1): 5,
        ("b", "c", 1, "d"): 5,
    }


def test_anchors_may_be_used_with_measure() -> None:
    assert parse_yaml("a: &x {k: 1}\nb: *x", "f").data == {"a": {"k": 1}, "b": {"k": 1}}


def bomb(width: int = 9, depth: int = 9) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), "aliases expand to more than"),
        ("a: &a [*a]", "nested more than"),
        ("[" * 5000, "nested too deeply"),
        ("[" * 60 + "]" * 60, "nested more than 40 levels"),
        ("a: 1\nb: 2\na: 3", r"run.yaml:3: a is given twice, first in line 1"),
        ("a:\n  b: 1\n  b: 2", r"a\.b is given twice"),
        ("a: !!python/object/apply:os.system ['true']", "tag .*os.system.* is not allowed"),
        ("a: !include x", "tag '!include' is not allowed"),
        ("a: !!binary aGk=", "is not allowed"),
        ("a: !!set {x}", "is not allowed"),
        ("a: {<<: {b: 1}}", "merge keys"),
        ("{[1]: 2}", "a key must be plain text"),
        ("a: .nan", "NaN and infinity"),
        ("a: -.inf", "NaN and infinity"),
        ("a: !!int x", "'x' is not a number"),
        ("a: " + "9" * 5000, "is not a number"),
        ("a: [1, 2", "run.yaml:1:9: not valid YAML"),
        ("a: *nope", "undefined alias"),
        ("--- 1\n--- 2", "another document"),
        ("a: \x00", "not valid YAML"),
        ("a" * (MAX_BYTES + 1), "at most"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_yaml(text, "run.yaml")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="{}[]&*!:-|>'\"# \n\tab1.<", max_size=60))
def test_any_text_parses_or_is_refused_for_the_user(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_yaml(text, "f")


TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")))
KEY = TEXT.filter(lambda key: key != "<<")
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
TREES = st.recursive(SIMPLE, lambda c: st.lists(c, max_size=3) | st.dictionaries(KEY, c, max_size=3))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(KEY, TREES, max_size=4))
def test_what_is_written_is_read_back(tree: dict[str, object]) -> None:
    assert parse_yaml(dump_yaml(tree), "f").data == tree
    assert parse_yaml(dump_yaml(tree, flow=True), "f").data == tree


def test_plain_words_are_written_plainly() -> None:
    assert dump_yaml({"a": "off", "b": "1e-3", "c": 1e-3}, flow=True) == "{a: off, b: '1e-3', c: 0.001}\n"
