"""The guide of a stage, from Markdown to HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup


def html(text: str) -> Markup:
    """HTML for a guide, with its headings one level lower, and with links to files of the project as plain text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    # Code and tables may be wider than the page: they scroll, and the keyboard can reach them.
    parser.add_render_rule("fence", _code)
    parser.add_render_rule("table_open", _table)
    parser.add_render_rule("table_close", _end_of_table)
    tokens = parser.parse(text)
    for index, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 1}"
        elif token.type == "th_open" and not tokens[index + 1].content:
            token.tag = tokens[index + 2].tag = "td"  # an empty header says nothing to a screen reader
        _link(token.children or ())
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _link(tokens: Iterable[Token]) -> None:
    elsewhere = False
    for token in tokens:
        if token.type == "link_open":
            elsewhere = str(token.attrGet("href")).startswith("https://")
            token.attrs = (
                {"href": str(token.attrGet("href")), "target": "_blank", "rel": "noopener"} if elsewhere else {}
            )
        if token.type in ("link_open", "link_close") and not elsewhere:
            token.tag = "em"
        elif token.type == "image":
            token.type, token.children = "text", None


def _code(_renderer: Any, tokens: Sequence[Token], index: int, _options: Any, _env: Any) -> str:
    return f'<pre tabindex="0"><code>{escape(tokens[index].content)}</code></pre>\n'


def _table(*_: Any) -> str:
    return '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>\n'


def _end_of_table(*_: Any) -> str:
    return "</table></div>\n"
