"""`raq report`: a run as one HTML file that needs nothing else. From records alone: neither torch nor ray."""

import base64
import gzip
import json
import math
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from raq.errors import UserError, first_line
from raq.page.parts import Code, Figure, Table
from raq.page.records import RunRecords
from raq.page.sections import sections
from raq.report.answers import read_answers_of_run
from raq.report.summary import summarise
from raq.report.terminal import clean
from raq.store.files import Record, atomic_write
from raq.store.local import read_run
from raq.store.opening import store_of

FILE = "report.html"
HTML = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(run_folder: Path, output: Path) -> None:
    """Write the page of a run; UserError if a record is damaged, or if the file cannot be written."""
    text = render(read_page(run_folder))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(output) as scratch:
            scratch.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}", "give another --output") from None


def write_run_page(run_folder: Path) -> str:
    """Write the page of a run into its folder; in words, where it is, or why there is none: that ends no run."""
    try:
        write_page(run_folder, run_folder / FILE)
    except Exception as error:  # the run has ended well, whatever is wrong with its page
        return f"no page was written: {first_line(error)}; see: raq report --debug"
    return f"the page of this run: {run_folder / FILE}"


def read_page(run_folder: Path) -> RunRecords:
    """All that the page of a run is made of; UserError if a record is damaged."""
    run, store = read_run(run_folder), store_of(run_folder)
    found = {name: store.read(stage["kind"], stage["fingerprint"]) for name, stage in run["stages"].items()}
    stages: dict[str, Record] = {name: clean(record) for name, record in found.items() if record is not None}
    return RunRecords(clean(summarise(run_folder)), clean(run["settings"]), stages, read_answers_of_run(run_folder))


def render(run: RunRecords) -> str:
    """The page of a run as HTML: every text of a record is escaped, and no address is loaded."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    own = resources.files("raq.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.tests["figure"] = lambda part: isinstance(part, Figure)
    environment.tests["table"] = lambda part: isinstance(part, Table)
    environment.tests["code"] = lambda part: isinstance(part, Code)
    made = sections(run)
    plots = {part.name: part for section in made for part in section.parts if isinstance(part, Figure)}
    summary = run.summary
    machine = summary["environment"]["machine"]
    return environment.from_string((own / "page.html.j2").read_text(encoding="utf-8")).render(
        title=f"{summary['experiment']}: raq report",
        experiment=summary["experiment"],
        run=summary["run"],
        complete=summary["complete"],
        machine=f"{machine['cpu']}, {machine['cpus']} CPUs",
        answer=summary["verdict"]["why"],
        answer_mark="good" if summary["verdict"]["choice"] else "",
        sections=made,
        version=metadata.version("raq"),
        style=Markup((own / "page.css").read_text(encoding="utf-8")),
        script=Markup((own / "page.js").read_text(encoding="utf-8")),
        library=base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode(),
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
