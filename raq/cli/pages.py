"""The command that writes a run's page: report."""

from pathlib import Path
from typing import Annotated

import typer

from raq.cli.options import DEFAULT_RESULTS, ResultsPlace, new_console


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or id, or 'latest'.")] = "latest",
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Default: report.html in the run's folder.")
    ] = None,
    results: ResultsPlace = DEFAULT_RESULTS,
) -> None:
    """A run as one HTML page that needs nothing else: verdict, plots, tables, proofs."""
    from raq.page.render import FILE, write_page
    from raq.store.opening import open_store

    folder = open_store(results).find_run(run)
    path = output if output is not None else folder / FILE
    write_page(folder, path)
    new_console().print(f"{path} is written", soft_wrap=True, markup=False, highlight=False)
