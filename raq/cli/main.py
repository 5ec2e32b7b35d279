"""The verbs. Each reads its options, calls one function and prints; errors become two lines and an exit code.

Imports stay inside the verbs: `raq --help` starts at once.
"""

import io
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from raq.cli.artifacts import bench, check, compare, profile
from raq.cli.failures import INTERRUPTED, interrupted, say_error, system_error, unforeseen
from raq.cli.models import inspect
from raq.cli.options import (
    DEFAULT_RESULTS,
    Address,
    ExperimentFile,
    Overrides,
    ResultsFolder,
    ResultsPlace,
    Wait,
    new_console,
    print_json,
    results_folder,
)
from raq.cli.pages import export, report
from raq.errors import RaqError
from raq.signals import stop_on_sigterm

app = typer.Typer(
    name="raq",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Decide which quantized version of a model to ship, and prove it.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"raq {version('raq')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decide which quantized version of a model to ship, and prove it."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(short_help="Write a first experiment, with comments.")
def init(name: Annotated[str, typer.Argument(metavar="NAME", help="Of the experiment.")] = "experiment") -> None:
    """Write NAME.yaml into this folder: an experiment with the keys that most people change, each explained."""
    from raq.cli.starter import write_starter

    path = write_starter(name, Path())
    new_console().print(f"{path} is written; see what it would do with: raq plan {path}", soft_wrap=True)


@app.command(short_help="Do the stages that are out of date; show table and verdict.")
def run(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    results: ResultsPlace = DEFAULT_RESULTS,
    address: Address = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do every stage again.")] = False,
    wait: Wait = 0.0,
) -> None:
    """Do what is stale of an experiment; end with the table and the verdict."""
    from raq.page.run_page import write_run_page
    from raq.report.console import print_summary
    from raq.report.live import RunDisplay
    from raq.report.summary import summarise
    from raq.running import run as run_experiment

    outcome = run_experiment(experiment, overrides or [], results, RunDisplay(), address, fresh, wait)
    console = new_console()
    if not outcome.ran:
        console.print("Nothing to do: every stage is there already.", highlight=False)
    console.print()
    print_summary(console, summarise(outcome.folder))
    if outcome.ran:
        console.print(write_run_page(outcome.folder), style="dim", soft_wrap=True, markup=False, highlight=False)


@app.command(short_help="List the stages, which are out of date, and why.")
def plan(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    results: ResultsPlace = DEFAULT_RESULTS,
    address: Address = None,
) -> None:
    """The stages of an experiment: which are up to date, why others are stale, where they would run, what they took."""
    from raq.report.console import print_plan
    from raq.running import dry_run

    print_plan(new_console(), dry_run(experiment, overrides or [], results, address))


@app.command(short_help="Show a run: its table and verdict.")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or id, or 'latest'.")] = "latest",
    details: Annotated[
        bool, typer.Option("--details", help="Also how it was measured, files, the parity chain.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsPlace = DEFAULT_RESULTS,
) -> None:
    """The table of a run, from its records."""
    from raq.report.console import print_summary
    from raq.report.summary import summarise
    from raq.store.opening import open_store

    summary = summarise(open_store(results).find_run(run))
    if as_json:
        print_json(summary)
    else:
        print_summary(new_console(), summary, details)


@app.command(short_help="List the runs, newest first, each with its verdict.")
def runs(
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The newest so many.")] = 20,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write each experiment's history as an HTML page.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsPlace = DEFAULT_RESULTS,
) -> None:
    """The runs in the results folder, newest first, each with its verdict."""
    from raq.report.runs import print_runs, run_lines
    from raq.store.opening import open_store

    folders = open_store(results).run_folders()
    if html is not None:
        from raq.page.history_page import page_of_history
        from raq.page.render import write

        write(page_of_history(folders[-limit:]), html)
        if not as_json:
            new_console().print(f"{html} is written", soft_wrap=True, markup=False, highlight=False)
            return
    found = run_lines(folders[: -limit - 1 : -1])
    if as_json:
        print_json(found)
    else:
        print_runs(new_console(), found, len(folders))


app.command(short_help="Write a run as one HTML page: verdict, plots, proofs.")(report)
app.command(short_help="Write a candidate as a folder to deploy.")(export)
app.command(short_help="Inspect a model: would it export, what would be int8?")(inspect)
app.command(short_help="Inspect an artifact: is it quantized, and where not?")(check)
app.command(short_help="Measure the latency of artifacts side by side.")(bench)
app.command(short_help="Show where an artifact's time goes, layer by layer.")(profile)
app.command(short_help="Compare runs: what differs, and is it real?")(compare)


@app.command(short_help="Run an experiment as a job of a Ray cluster.")
def submit(
    experiment: ExperimentFile,
    address: Annotated[
        str | None, typer.Option(metavar="URL", help="The cluster's dashboard, e.g. http://127.0.0.1:8265.")
    ] = None,
    results: Annotated[
        str | None, typer.Option("--results", metavar="DIR", help="A folder that all nodes share, or s3://...")
    ] = None,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do every stage again.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    wait: Wait = 0.0,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", metavar="PATH", help="Send this too: a file or folder of this one."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    insecure_http: Annotated[
        bool, typer.Option("--insecure-http", help="Allow plain HTTP to another machine.")
    ] = False,
) -> None:
    """The run as a job of a Ray cluster: sends what it needs, follows its log, returns its exit code."""
    from raq.errors import UserError
    from raq.report.terminal import say as say_on
    from raq.submit.job import Submission, ask_on_terminal, show_package
    from raq.submit.job import submit as submit_experiment

    console = new_console()

    def say(line: str) -> None:
        say_on(console, line)

    if dry_run:
        show_package(experiment, overrides or [], include or [], say)
        return
    if address is None or results is None:
        raise UserError("submit needs --address and --results", "see 'raq submit --help'; --dry-run needs neither")
    asked = Submission(
        experiment=experiment, overrides=overrides or [], address=address, results=results, fresh=fresh, wait_s=wait,
        include=include or [], insecure=insecure_http, follow=not detach,
    )  # fmt: skip
    code = submit_experiment(asked, say, ask_on_terminal)
    raise typer.Exit(code)


@app.command(short_help="Print the JSON Schema of an experiment, for editors.")
def schema() -> None:
    """Print the JSON Schema of an experiment's file: editors complete and check keys with it.

    The first line of the file says where it is: # yaml-language-server: $schema=schema.json
    """
    from raq.experiment.json_schema import json_schema

    print_json(json_schema())


@app.command(short_help="Inspect this machine: what would go wrong in a run?")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsFolder = DEFAULT_RESULTS,
) -> None:
    """This machine: what it means for int8, and what would go wrong in a run."""
    from raq.doctor import as_json as plain
    from raq.doctor import examine
    from raq.report.checks import print_findings

    findings = examine(results_folder(results))
    if as_json:
        print_json({"findings": plain(findings)})
    else:
        print_findings(new_console(), findings)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """The `raq` command: runs a verb and exits with its code."""
    debug = "--debug" in sys.argv
    if debug:  # anywhere on the line
        sys.argv = [sys.argv[0], *(argument for argument in sys.argv[1:] if argument != "--debug")]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for what it has not
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # it warns of torchao's own calls at its import
    try:
        stop_on_sigterm()
        returned = app(standalone_mode=False)  # an exit code, where typer itself has caught an interruption or exit
        code = returned if isinstance(returned, int) else 0
        if code == INTERRUPTED:
            interrupted()
    except (KeyboardInterrupt, typer.Abort):
        code = interrupted()
    except RaqError as error:
        code = say_error(error.message, error.hint, error.exit_code, error if debug else None)
    except OSError as error:
        code = system_error(error, debug=debug)
    except typer.Exit as error:
        code = error.exit_code
    except Exception as error:
        if debug and getattr(error, "format_message", None) is None:
            raise
        code = unforeseen(error)
    sys.exit(code)
