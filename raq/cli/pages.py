"""The commands that write what others open: report, export."""

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
    from raq.page.run_page import FILE, write_page
    from raq.store.opening import open_store

    folder = open_store(results).find_run(run)
    path = output if output is not None else folder / FILE
    write_page(folder, path)
    new_console().print(f"{path} is written", soft_wrap=True, markup=False, highlight=False)


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or id, or 'latest'.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="The folder to write; a new or empty one.")],
    candidate: Annotated[
        str | None, typer.Option("--candidate", metavar="NAME", help="Default: what the verdict ships.")
    ] = None,
    results: ResultsPlace = DEFAULT_RESULTS,
) -> None:
    """A candidate as a folder to deploy: the file, a runner without raq, a model card, and what verifies a copy."""
    from raq.bundle.write import export as write_bundle
    from raq.report.terminal import say
    from raq.store.opening import open_store

    found = write_bundle(open_store(results).find_run(run), output, candidate)
    console = new_console()
    say(console, f"{output} is written: {found.name} for {found.runtime.name}", whole=True)
    needed, verifies = output / "requirements.txt", output / "verify.py"
    say(console, f"verify it where it is to run: pip install -r {needed}; python {verifies}", whole=True)
