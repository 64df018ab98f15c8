"""Sphinx: `make docs` builds these pages into build/docs. Warnings are errors there, so every link leads somewhere.

Diagrams are drawn while the pages are built: the HTML has them as SVG and needs no script and nothing from outside.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from mermaidx import render
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "criu_relay"
extensions = ["myst_parser"]
root_doc = "index"
exclude_patterns = ["man"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Moves running processes from one Linux machine to another through memory",
    "page_width": "1200px",
    "sidebar_width": "260px",
    "font_family": "sans-serif",
    "head_font_family": "sans-serif",
    "sidebar_collapse": True,
}
html_static_path = ["static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
myst_heading_anchors = 3
myst_fence_as_directive = {"mermaid"}
# Quotes belong to what is typed.
smartquotes = False


class Mermaid(SphinxDirective):
    """A diagram."""

    has_content = True
    count: ClassVar[int] = 0

    def run(self) -> list[nodes.Node]:
        """An SVG with names of its own, as several are on one page."""
        Mermaid.count += 1
        drawn = render("\n".join(self.content)).svg().replace("my-svg", f"diagram-{Mermaid.count}")
        return [nodes.raw("", f'<div class="diagram">{drawn}</div>', format="html")]


def outside(app: Sphinx, name: str, source: list[str]) -> None:
    """Files of the repository that are no page are named, and not linked to: the pages are read without them."""

    def shown(found: re.Match[str]) -> str:
        target = (HERE / found[2].partition("#")[0]).resolve()
        if not target.exists():
            raise ValueError(f"{name}: there is no {found[2]}")
        where = target.relative_to(ROOT).as_posix()
        return f"`{where}`" if found[1] in (found[2], where) else f"{found[1]} (`{where}`)"

    if name == root_doc:
        source[0] += contents(source[0])
    source[0] = re.sub(r"\[([^\]]+)\]\(((?:\.\./|man)[^)]*)\)", shown, source[0])


def contents(index: str) -> str:
    """What the navigation has: the pages that the index names, under its headings."""
    trees = []
    for title, text in re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", index, re.MULTILINE):
        pages = re.findall(r"\((\w+)\.md\) \|$", text, re.MULTILINE)
        if pages:
            trees.append("\n".join(["\n```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```\n"]))
    return "".join(trees)


def setup(app: Sphinx) -> None:
    """See sphinx.application."""
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", outside)
