"""`raq report`: the page of a run. From records alone: neither torch nor ray."""

from pathlib import Path

from raq.errors import first_line
from raq.page.parts import Page
from raq.page.pictures import read_thumbnails
from raq.page.records import RunRecords
from raq.page.render import write
from raq.page.sections import sections
from raq.report.answers import read_answers_of_run
from raq.report.bench import disturbed_warning
from raq.report.ratios import compared
from raq.report.summary import summarise
from raq.report.terminal import clean
from raq.store.files import Record
from raq.store.local import read_run
from raq.store.opening import store_of

FILE = "report.html"


def write_page(run_folder: Path, output: Path) -> None:
    """Write the page of a run; UserError if a record is damaged, or if the file cannot be written."""
    write(page_of(read_page(run_folder)), output)


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
    return RunRecords(
        clean(summarise(run_folder)), clean(run["settings"]), stages, read_answers_of_run(run_folder),
        read_thumbnails(store, stages.get("evaluate/fp32")),
    )  # fmt: skip


def page_of(run: RunRecords) -> Page:
    """The page of a run."""
    summary = run.summary
    machine = summary["environment"]["machine"]
    unfinished = "" if summary["complete"] else " · NOT COMPLETE"
    return Page(
        title=f"{summary['experiment']}: raq report",
        heading=summary["experiment"],
        facts=f"run {summary['run']} on {machine['cpu']}, {machine['cpus']} CPUs{unfinished}",
        answer=summary["verdict"]["why"],
        is_good=bool(summary["verdict"]["choice"]),
        sections=sections(run),
        warnings=[line for line in (disturbed_warning(compared(summary["candidates"])),) if line],
    )
