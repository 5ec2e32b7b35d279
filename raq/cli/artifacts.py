"""The commands about artifacts and finished runs: check, bench, compare."""

from pathlib import Path
from typing import Annotated

import typer

from raq.cli.options import DEFAULT_RESULTS, ResultsFolder, ResultsPlace, new_console, print_json, results_folder


def check(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT...", help="Packages (.pt2), .pte, .onnx or .trt.")
    ],
    run: Annotated[bool, typer.Option("--run", help="Load it, in a process of its own, whoever made it.")] = False,
    require: Annotated[
        float,
        typer.Option(
            "--min-int8-share", "--require", min=0, max=1, metavar="SHARE", help="Least share of the MACs in int8."
        ),
    ] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsFolder = DEFAULT_RESULTS,
) -> None:
    """Is it quantized, is it whole, is it the one that was evaluated? Reads the generated code, layer by layer.

    An artifact is native code: it is loaded only with --run, or if a record in the results folder vouches for it.
    """
    from raq.artifact.check import check as check_artifact
    from raq.report.checks import print_check

    folder = results_folder(results)
    found = [check_artifact(path, folder, run=run, require=require) for path in artifacts]
    if as_json:
        print_json(found)
    else:
        for one in found:
            print_check(new_console(), one)
    if any(one["problems"] for one in found):
        raise typer.Exit(1)


def bench(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT...", help="Packages (.pt2), .pte, .onnx or .trt.")
    ],
    batch_sizes: Annotated[
        list[int] | None,
        typer.Option("--batch-size", min=1, max=65_536, metavar="N", help="Images a call; repeatable."),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Half width of a speedup's interval to reach, relative; default: 0.02."),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Time after which it ends in any case (streams: as much again); default: 180."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads; default: all CPUs.")] = None,
    streams: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Also images a second, of so many processes of one thread each."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option("--input-shape", "--input", metavar="3,H,W", help="Shape of an image, where no metadata has it."),
    ] = None,
    protocol: Annotated[str, typer.Option(metavar="NAME", help="interleaved, or published.")] = "interleaved",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The latency of artifacts side by side, against the first of them. It loads and runs them: native code."""
    from raq.bench.artifacts import bench_artifacts, bench_settings, image_inputs
    from raq.environment import environment
    from raq.report.bench import BenchDisplay, print_bench

    settings = bench_settings(
        protocol=protocol, batch_sizes=batch_sizes, precision=precision, budget_s=budget, threads=threads,
        streams=int(streams) if streams is not None and streams.isdecimal() else streams,
    )  # fmt: skip
    with BenchDisplay(quiet=as_json) as display:
        found = bench_artifacts(artifacts, settings, image_inputs(shape), display.progress)
    found["environment"] = environment()
    if as_json:
        print_json(found)
    else:
        print_bench(new_console(), found)


def profile(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A package (.pt2) for a CPU.")],
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=65_536, metavar="N", help="Images a call.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads; default: all CPUs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Milliseconds by layer and kernel, beside what this CPU can do at most. It loads and runs the artifact."""
    from raq.bench.profile import profile as profile_artifact
    from raq.environment import environment
    from raq.report.profile import print_profile

    found = profile_artifact(artifact, batch_size, threads)
    if as_json:
        print_json({**found.as_record(), "environment": environment()})
    else:
        print_profile(new_console(), found)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs' folders or ids, or 'latest'.")],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write it as an HTML page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    results: ResultsPlace = DEFAULT_RESULTS,
) -> None:
    """What differs between runs and is real: each against the first, by speedups over the same baseline."""
    from raq.errors import UserError
    from raq.report.bench import print_comparison
    from raq.report.comparison import compare as compare_runs
    from raq.report.terminal import say
    from raq.store.opening import open_store

    if len(runs) < 2:
        raise UserError("compare takes two runs or more", "see their ids in the results folder, under runs")
    store = open_store(results)
    folders = [store.find_run(run) for run in runs]
    for run, folder in zip(runs[1:], folders[1:], strict=True):
        if folder.resolve() == folders[0].resolve():
            raise UserError(f"{run} is the same run as {runs[0]}", "compare takes two runs; see them with 'raq runs'")
    found = compare_runs(folders)
    if html is not None:
        from raq.page.comparison_page import page_of_comparison
        from raq.page.render import write

        write(page_of_comparison(found), html)
    if as_json:
        print_json(found)
    else:
        print_comparison(new_console(), found)
        if html is not None:
            say(new_console(), f"{html} is written", whole=True)
