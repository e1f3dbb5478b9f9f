"""Reader of YAML dumps of Python objects as plain data: no tag ever constructs an object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from xarch import BoundedLoader, UsageError, regular_text

MAX_BYTES = 1 << 20


class PlainLoader(BoundedLoader):
    """Objects become dicts of their attributes, tuples become lists, classes and functions become their names."""


def _plain(loader: PlainLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return suffix


PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """Read a document as nested dicts, lists, strings and numbers.

    Raises:
        UsageError: the file is too large or is not a YAML mapping.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES} bytes, too large for a nerfstudio config")
    try:
        document = yaml.load(regular_text(path), Loader=PlainLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError, TypeError) as e:
        raise UsageError(f"{path} cannot be read as YAML: {str(e).splitlines()[0]}") from e
    if not isinstance(document, dict):
        raise UsageError(f"{path} holds a {type(document).__name__}, expected a mapping")
    return document
