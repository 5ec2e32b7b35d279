"""Options and outputs that several commands share."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


ExperimentFile = Annotated[Path, typer.Argument(metavar="EXPERIMENT", help="The experiment's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. train.epochs=1.")
]
ResultsFolder = Annotated[str, typer.Option("--results", metavar="DIR", help="The folder of records and artifacts.")]
ResultsPlace = Annotated[
    str, typer.Option("--results", metavar="DIR", help="Where records and artifacts are: a folder, or s3://...")
]
Wait = Annotated[
    float, typer.Option("--wait", min=0, max=86_400, metavar="SECONDS", help="How long to wait for nodes; default: 0.")
]
Address = Annotated[str | None, typer.Option(metavar="ADDR", help="A running Ray cluster; default: this machine.")]
DEFAULT_RESULTS = "results"


def results_folder(results: str) -> Path:
    """The folder given by --results to a verb that reads no other place."""
    from raq.errors import UserError
    from raq.store.object_storage import is_address

    if is_address(results):
        raise UserError(
            f"--results {results}: this verb reads a folder of this machine", "give a folder, or leave it out"
        )
    return Path(results)


def print_json(value: Any) -> None:
    """Print a plain value as JSON."""
    import json

    new_console().print(json.dumps(value, indent=1, allow_nan=False), markup=False, highlight=False, soft_wrap=True)


def new_console() -> "Console":
    """A console of standard output; a reader that stops early, as `head` does, ends the command without an error."""
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            """The reader has what it wanted: not an error."""
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(0)

    return OurConsole(markup=False, emoji=False, highlight=False)
