"""A page as one HTML file that needs nothing else. Neither torch nor ray."""

import base64
import gzip
import json
import math
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from raq.errors import UserError
from raq.page.parts import Code, Figure, Gallery, Page, Table
from raq.store.files import atomic_write

HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write(page: Page, output: Path) -> None:
    """Write a page, whole or not at all; UserError if the file cannot be written."""
    text = render(page)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}", "name another file") from None


def render(page: Page) -> str:
    """The page as HTML: every text of a record is escaped, and no address is loaded."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    own = resources.files("raq.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    for kind in (Figure, Table, Gallery, Code):
        environment.tests[kind.__name__.lower()] = lambda part, kind=kind: isinstance(part, kind)
    plots = {part.name: part for section in page.sections for part in section.parts if isinstance(part, Figure)}
    return environment.from_string((own / "page.html.j2").read_text(encoding="utf-8")).render(
        page=page,
        version=metadata.version("raq"),
        style=Markup((own / "page.css").read_text(encoding="utf-8")),
        script=Markup((own / "page.js").read_text(encoding="utf-8")),
        library=base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode() if plots else "",
        figures=Markup(_json({name: {"data": plot.data, "layout": plot.layout} for name, plot in plots.items()})),
    )


def _finite(value: Any) -> Any:
    """The value without numbers that JSON has not: an interval may have no bound."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any) -> str:
    """JSON that ends no script, whatever its texts are."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escaped in HTML.items():
        text = text.replace(character, escaped)
    return text
