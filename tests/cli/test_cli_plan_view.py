"""What the plan says about stages that may end early."""

from __future__ import annotations

import pytest

from xarch.cli.plan_view import until_text
from xarch.config.schema import Plateau, Until


@pytest.mark.parametrize(
    ("until", "text"),
    [
        (None, ""),
        (Until(plateau=Plateau()), ", until plateau"),
        (Until(seconds=20), ", until 20 s"),
        (Until(plateau=Plateau(window=50), seconds=90), ", until plateau or 1 m 30 s"),
    ],
)
def test_a_stage_says_what_may_end_it(until: Until | None, text: str) -> None:
    assert until_text(until) == text
