"""Pieces that all views are made of. Whatever telemetry contains is shown as text, never as markup."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import orjson
import pandas as pd
import panel as pn
from bokeh.model import Model
from panel.io.document import unlocked
from yarl import URL

BAD = "#e0413a"
STYLE = f"""
:host {{
  --soft: color-mix(in srgb, currentColor 66%, transparent);
  --line: color-mix(in srgb, currentColor 18%, transparent);
}}
.bar {{ display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; font-size: .92rem; margin-bottom: 3px; }}
.bar .end {{ margin-left: auto; }}
.soft {{ color: var(--soft); }}
.source {{
  border: 1px solid var(--line); border-radius: 99px; padding: 0 10px; font-size: .82rem; white-space: nowrap;
}}
.bad {{ color: {BAD}; font-weight: 600; }}
.wait {{ color: #b97a00; font-weight: 600; }}
h3 {{ margin: 0; font-size: 1.05rem; font-weight: 600; overflow-wrap: anywhere; }}
code {{ font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; white-space: pre-wrap; }}
a {{ color: inherit; }}
button {{
  font: inherit; font-size: .82rem; color: inherit; background: none; border: 1px solid var(--line);
  border-radius: 6px; padding: 0 8px; cursor: pointer;
}}
button:hover {{ border-color: currentColor; }}
button:focus-visible {{ outline: 3px solid #0b8ecb; outline-offset: 1px; }}
.dot {{ display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em; }}
.empty {{ color: var(--soft); text-align: center; padding: 48px 8px; }}
dl {{
  display: grid; grid-template-columns: fit-content(14em) minmax(0, 1fr); gap: 3px 16px; margin: 6px 0;
  font-size: .86rem;
}}
dt {{ color: var(--soft); overflow-wrap: anywhere; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
details {{ font-size: .9rem; }}
"""
TABLE_STYLE = """
:host .tabulator { font-size: .84rem; border: none; background: none; }
:host .tabulator .tabulator-header .tabulator-col-title { font-weight: 500; opacity: .7; }
:host .tabulator .tabulator-header .tabulator-col .tabulator-col-content { padding: 4px 8px; }
:host .tabulator .tabulator-row, :host .tabulator .tabulator-row.tabulator-row-even {
  min-height: 0; cursor: pointer; background: none !important;
  border-bottom: 1px solid color-mix(in srgb, currentColor 12%, transparent);
}
:host .tabulator .tabulator-row:hover { background: color-mix(in srgb, currentColor 9%, transparent) !important; }
:host .tabulator .tabulator-row .tabulator-cell { padding: 3px 8px; min-height: 0; height: auto; border: none; }
"""


def html(text: str = "", **options: Any) -> pn.pane.HTML:
    return pn.pane.HTML(text, stylesheets=[STYLE], sizing_mode="stretch_width", margin=(2, 10), **options)


def bar(*parts: str) -> str:
    """Pieces of HTML side by side."""
    return f'<div class="bar">{"".join(parts)}</div>'


def failure(message: str) -> str:
    return bar(f'<span class="bad">{escape(message)}</span>')


def definitions(values: Mapping[str, Any]) -> str:
    """Names and what they stand for, below each other."""
    rows = "".join(
        f"<dt>{escape(str(name))}</dt><dd><code>{escape(str(value))}</code></dd>" for name, value in values.items()
    )
    return f"<dl>{rows}</dl>" if rows else ""


def copy_button(text: str, label: str, *, link: bool = False) -> str:
    """A button that copies a text, or the address of a page of this site."""
    what = "location.origin+b.dataset.copy" if link else "b.dataset.copy"
    script = (
        f"const b=this,t=b.textContent;navigator.clipboard.writeText({what})"
        ".then(()=>{b.textContent='copied';setTimeout(()=>b.textContent=t,1500)})"
    )
    return f'<button type="button" data-copy="{escape(text)}" onclick="{script}">{escape(label)}</button>'


def grafana_link(grafana: URL | None, kind: str, queries: Sequence[Mapping[str, Any]]) -> str:
    """A link to the same thing in Grafana's Explore; empty where Grafana does not run.

    Args:
        kind: a data source's type, which is also its uid here: tempo, loki or prometheus.
        queries: as Explore keeps them in its address.
    """
    if grafana is None:
        return ""
    source = {"type": kind, "uid": kind}
    pane = {
        "datasource": kind,
        "queries": [{"refId": chr(ord("A") + i), "datasource": source, **query} for i, query in enumerate(queries)],
        "range": {"from": "now-1h", "to": "now"},
    }
    url = (grafana / "explore").with_query(schemaVersion="1", orgId="1", panes=orjson.dumps({"dicelab": pane}).decode())
    return f'<a href="{escape(str(url))}" target="_blank" rel="noopener">Grafana ↗</a>'


def change(model: Model, **values: Any) -> None:
    """Change a plot or a part of it.

    Bokeh's own way to the browser and Panel's, which all else takes, are two queues: what was drawn into a new plot
    could arrive before the plot itself. So this takes Panel's, a message a change: with a whole drawing in one, the
    browser's side of Bokeh now and then counted a plot's colours before it had counted its new rows.
    """
    with unlocked():
        model.update(**values)


class TextTable:
    """A table of text.

    It is made with its first rows: a table is the dearest part of a page, and one that is filled while the browser
    still builds it may stay empty there.

    Args:
        columns: their names, with widths in pixels; those without share what is left.
        on_click: gets Panel's event, which has ``row`` and ``column``.
        height: in pixels.
        css_class: to find it by.
    """

    def __init__(
        self, columns: Mapping[str, int | None], on_click: Callable[[Any], None], height: int, css_class: str
    ) -> None:
        self._columns = columns
        self._on_click = on_click
        self._height = height
        self._css_class = css_class
        self._table: Any = None
        self.panel = pn.Column(html(), sizing_mode="stretch_width")

    def show(self, rows: Sequence[Sequence[Any]]) -> None:
        """Show these rows, a cell a column."""
        cells = [[str(cell) for cell in row] for row in rows]
        value = pd.DataFrame(cells, columns=list(self._columns), dtype=object)
        if self._table is not None:
            self._table.value = value
            return
        self._table = pn.widgets.Tabulator(
            value,
            show_index=False,
            disabled=True,
            selectable=False,
            sizing_mode="stretch_width",
            height=self._height,
            row_height=28,
            pagination=None,  # otherwise Panel decides by the number of rows
            layout="fit_columns",
            theme="simple",
            # Not one of those that take a cell for markup.
            formatters={name: {"type": "plaintext"} for name in self._columns},
            widths={name: width for name, width in self._columns.items() if width},
            configuration={"columnDefaults": {"headerSort": False, "tooltip": False}, "placeholder": "Nothing here"},
            stylesheets=[TABLE_STYLE],
            css_classes=[self._css_class],
            on_click=self._on_click,
        )
        self.panel.objects = [self._table]
