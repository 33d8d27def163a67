"""Templates of the page's regions. Jinja escapes all values."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import orjson
from markupsafe import Markup

from frontend.explorer.colours import colour
from frontend.explorer.model import duration_text

ROOT = Path(__file__).parents[1]
# Templates of other pages, which extend a template of ``web``, and Panel's template, which it compiles itself.
SERVED_ALONE = {"templates/error.html", "templates/sign_in.html", "templates/page.html"}


def plural(count: float, noun: str) -> str:
    """A number with its noun: ``1 line``, ``2 lines``."""
    return f"{amount(count)} {noun}{'' if count == 1 else 's'}"


def amount(value: float) -> str:
    """A whole number with spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["duration"] = duration_text
    environment.filters["plural"] = plural
    environment.filters["amount"] = amount
    environment.filters["json"] = lambda value: orjson.dumps(value).decode()
    environment.globals["colour"] = colour
    return environment


def load_templates() -> None:
    """Compile all templates of the page, which takes 0.2 s, so that the first page load does not."""
    for name in _environment().list_templates(filter_func=lambda name: name.endswith(".html")):
        if name not in SERVED_ALONE:
            _environment().get_template(name)


def render(template: str, **values: Any) -> Markup:
    """Fill a template; its name is its path below ``frontend/``."""
    return Markup(_environment().get_template(template).render(**values))
