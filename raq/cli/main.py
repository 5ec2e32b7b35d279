"""The verbs. Each reads its options, calls one function and prints; errors become two lines and an exit code.

Imports stay inside the verbs: `raq --help` starts at once.
"""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raq.cli.failures import INTERRUPTED, interrupted, say_error, system_error, unforeseen
from raq.errors import RaqError
from raq.signals import stop_on_sigterm

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="raq",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Decide which quantized version of a model to ship, and prove it.",
)

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
    _console().print(f"{path} is written; see what it would do with: raq plan {path}", soft_wrap=True)


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
    from raq.report.console import print_summary
    from raq.report.live import RunDisplay
    from raq.report.summary import summarise
    from raq.run import run as run_experiment

    outcome = run_experiment(experiment, overrides or [], results, RunDisplay(), address, fresh, wait)
    console = _console()
    if not outcome.ran:
        console.print("Nothing to do: every stage is there already.", highlight=False)
    print_summary(console, summarise(outcome.folder))


@app.command(short_help="List the stages, which are out of date, and why.")
def plan(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    results: ResultsPlace = DEFAULT_RESULTS,
    address: Address = None,
) -> None:
    """The stages of an experiment, each fresh or stale and why, and where the stale ones would be done."""
    from raq.report.console import print_plan
    from raq.run import placements

    prepared, stale, where = placements(experiment, overrides or [], results, address)
    print_plan(_console(), prepared.plan, stale, where)


@app.command(short_help="Show a run: its table and verdict.")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or id, or 'latest'.")] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsPlace = DEFAULT_RESULTS,
) -> None:
    """The table of a run, from its records."""
    from raq.report.console import print_summary
    from raq.report.summary import summarise
    from raq.store.opening import open_store

    summary = summarise(open_store(results).find_run(run))
    if as_json:
        _print_json(summary)
    else:
        print_summary(_console(), summary)


@app.command(short_help="List the runs, newest first, each with its verdict.")
def runs(
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="The newest so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsPlace = DEFAULT_RESULTS,
) -> None:
    """The runs in the results folder, newest first, each with its verdict."""
    from raq.report.runs import print_runs, run_lines
    from raq.store.opening import open_store

    folders = open_store(results).run_folders()
    found = run_lines(folders[: -limit - 1 : -1])
    if as_json:
        _print_json(found)
    else:
        print_runs(_console(), found, len(folders))


@app.command(short_help="Inspect an artifact: is it quantized, and where not?")
def check(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Packages (.pt2), or .pte.")],
    run: Annotated[bool, typer.Option("--run", help="Load it, in a process of its own, whoever made it.")] = False,
    require: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Least share of the MACs in int8.")
    ] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsFolder = DEFAULT_RESULTS,
) -> None:
    """Is it quantized, is it whole, is it the one that was evaluated? Reads the generated code, layer by layer.

    An artifact is native code: it is loaded only with --run, or if a record in the results folder vouches for it.
    """
    from raq.artifact.check import check as check_artifact
    from raq.report.checks import print_check

    folder = _folder(results)
    found = [check_artifact(path, folder, run=run, require=require) for path in artifacts]
    if as_json:
        _print_json(found)
    else:
        for one in found:
            print_check(_console(), one)
    if any(one["problems"] for one in found):
        raise typer.Exit(1)


@app.command(short_help="Measure the latency of artifacts side by side.")
def bench(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="Packages (.pt2), or .pte.")],
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option("--batch-size", min=1, max=65_536, metavar="N", help="Images a call; repeatable."),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Half width of a speedup's interval to reach, relative; default: 0.02."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time after which it ends in any case; default: 180.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads; default: all CPUs.")] = None,
    shape: Annotated[
        str | None, typer.Option("--input", metavar="3,H,W", help="Shape of an image, where no metadata tells it.")
    ] = None,
    protocol: Annotated[str, typer.Option(metavar="NAME", help="interleaved, or published.")] = "interleaved",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The latency of artifacts side by side, against the first of them. It loads and runs them: native code."""
    from raq.bench.artifacts import bench_artifacts, bench_settings, image_shape
    from raq.environment import environment
    from raq.report.bench import BenchDisplay, print_bench

    settings = bench_settings(
        protocol=protocol, batch_sizes=batch_sizes, precision=precision, budget_s=budget, threads=threads
    )
    with BenchDisplay(quiet=as_json) as display:
        found = bench_artifacts(artifacts, settings, image_shape(shape), display.progress)
    found["environment"] = environment()
    if as_json:
        _print_json(found)
    else:
        print_bench(_console(), found)


@app.command(short_help="Compare runs: what differs, and is it real?")
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs' folders or ids, or 'latest'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsPlace = DEFAULT_RESULTS,
) -> None:
    """What differs between runs and is real: each against the first, by speedups over the same baseline."""
    from raq.errors import UserError
    from raq.report.bench import print_comparison
    from raq.report.comparison import compare as compare_runs
    from raq.store.opening import open_store

    if len(runs) < 2:
        raise UserError("compare takes two runs or more", "see their ids in the results folder, under runs")
    store = open_store(results)
    folders = [store.find_run(run) for run in runs]
    for run, folder in zip(runs[1:], folders[1:], strict=True):
        if folder.resolve() == folders[0].resolve():
            raise UserError(f"{run} is the same run as {runs[0]}", "compare takes two runs; see them with 'raq runs'")
    found = compare_runs(folders)
    if as_json:
        _print_json(found)
    else:
        print_comparison(_console(), found)


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
    from raq.submit.job import ask_on_terminal, show_package
    from raq.submit.job import submit as submit_experiment

    console = _console()

    def say(line: str) -> None:
        say_on(console, line)

    if dry_run:
        show_package(experiment, overrides or [], include or [], say)
        return
    if address is None or results is None:
        raise UserError("submit needs --address and --results", "see 'raq submit --help'; --dry-run needs neither")
    code = submit_experiment(
        experiment,
        overrides or [],
        address,
        results,
        fresh,
        say,
        ask_on_terminal,
        follow=not detach,
        wait_s=wait,
        include=include or [],
        insecure=insecure_http,
    )
    raise typer.Exit(code)


@app.command(short_help="Print the JSON Schema of an experiment, for editors.")
def schema() -> None:
    """Print the JSON Schema of an experiment's file: editors complete and check keys with it.

    The first line of the file says where it is: # yaml-language-server: $schema=schema.json
    """
    from raq.experiment.json_schema import json_schema

    _print_json(json_schema())


@app.command(short_help="Inspect this machine: what would go wrong in a run?")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsFolder = DEFAULT_RESULTS,
) -> None:
    """This machine: what it means for int8, and what would go wrong in a run."""
    from raq.doctor import as_json as plain
    from raq.doctor import examine
    from raq.report.checks import print_findings

    findings = examine(_folder(results))
    if as_json:
        _print_json({"findings": plain(findings)})
    else:
        print_findings(_console(), findings)
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)


def _folder(results: str) -> Path:
    """The folder given by --results to a verb that reads no other place."""
    from raq.errors import UserError
    from raq.store.object_storage import is_address

    if is_address(results):
        raise UserError(
            f"--results {results}: this verb reads a folder of this machine", "give a folder, or leave it out"
        )
    return Path(results)


def _print_json(value: Any) -> None:
    import json

    _console().print(json.dumps(value, indent=1, allow_nan=False), markup=False, highlight=False, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            """The reader has what it wanted: not an error."""
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(0)

    return OurConsole(markup=False, emoji=False, highlight=False)


def main() -> None:
    """The `raq` command: runs a verb and exits with its code."""
    debug = "--debug" in sys.argv
    if debug:  # anywhere on the line
        sys.argv = [sys.argv[0], *(argument for argument in sys.argv[1:] if argument != "--debug")]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for what it has not
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
