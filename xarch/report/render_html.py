"""The report as one self-contained page: no scripts, no external fonts, no network access."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markdown_it import MarkdownIt
from markupsafe import Markup

from xarch.report.blocks import Section


@cache
def _template() -> Template:
    loader = PackageLoader("xarch.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["markdown"] = _markdown
    return environment.get_template("page.html.jinja")


def to_html(title: str, subtitle: str, badge: tuple[str, str], sections: Sequence[Section]) -> str:
    """Return the whole page.

    Everything is escaped except the SVG of figures, which this package generates and whose labels are text nodes. The
    page's content security policy blocks scripts and requests, so strings from teachers and data sets are harmless.

    Args:
        badge: (text, tone) next to the title.
    """
    return _template().render(title=title, subtitle=subtitle, badge=badge, sections=sections, own_svg=Markup)


def _markdown(text: str) -> Markup:
    """Render formatted text of a plugin: tables and emphasis, but no HTML, images or links."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
    return Markup(parser.render(text))
