"""The report as one page that needs nothing else: no script, no font, no network."""

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
    """The whole page.

    Everything is escaped but the SVG of figures, which this package makes itself and whose labels are text nodes. The
    page's policy forbids scripts and every request, whatever a teacher or a data set may have put into a string.

    Args:
        badge: (words, tone) beside the title.
    """
    return _template().render(title=title, subtitle=subtitle, badge=badge, sections=sections, own_svg=Markup)


def _markdown(text: str) -> Markup:
    """Formatted text of a plugin: tables and emphasis, but no HTML, no pictures and no links."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "link", "autolink"])
    return Markup(parser.render(text))
