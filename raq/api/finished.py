"""A run that is there: `raq.open_run(folder)`. From records alone: neither torch nor ray."""

import os
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from raq.api import frames
from raq.errors import UserError
from raq.report.summary import summarise
from raq.report.terminal import printable
from raq.report.types import RunSummary, Verdict
from raq.store.files import Record
from raq.store.local import read_run
from raq.store.object_storage import is_address
from raq.store.opening import open_store, store_of

if TYPE_CHECKING:
    import pandas as pd

TRIALS = "trials.parquet"
SHOWN = ["candidate", "runtime", "device", "batch_size", "p50_ms", "speedup", "speedup_low", "speedup_high"]


class Run:
    """A run's records: those of its folder, or of its address (s3://BUCKET/FOLDER/runs/ID).

    Tables are pandas DataFrames, made anew at each call; a value that is not known is missing in them. A notebook shows
    a run as its verdict, its candidates and its latencies.
    """

    def __init__(self, path: "str | os.PathLike[str]") -> None:
        if not isinstance(path, str | os.PathLike) or not str(path):
            raise UserError(f"a run cannot be opened by {path!r:.80}", "give its folder: results/runs/<id>")
        address, _, rest = str(path).partition("/runs/")
        if is_address(address):
            name, _, options = rest.partition("?")
            store = open_store(address + (f"?{options}" if options else ""))
            self.folder = store.find_run(name or "latest")
        else:
            self.folder = Path(path).resolve()
        self.record = read_run(self.folder)

    @cached_property
    def summary(self) -> RunSummary:
        """What `raq show --json` prints."""
        return summarise(self.folder)

    @property
    def verdict(self) -> Verdict:
        """What to ship (choice: the candidate's name, None if that is not known), why, and the claims behind it."""
        return self.summary["verdict"]

    def stages(self) -> dict[str, Record]:
        """The records of the stages that are finished, by name: settings, results, environment, files."""
        store = store_of(self.folder)
        found = {name: store.read(one["kind"], one["fingerprint"]) for name, one in self.record["stages"].items()}
        return {name: record for name, record in found.items() if record is not None}

    def candidates(self) -> "pd.DataFrame":
        """A row a candidate and file.

        Columns: candidate, kind, metric, value (a share of 1 where the metric is one) with value_low and value_high
        (95%), drop with drop_low and drop_high (points, or the metric's unit; positive is worse than fp32), samples,
        same_accuracy_p (McNemar), runtime, device, weight_bytes, size_bytes, resident_bytes, int8_mac_share (in the
        code), executed_int8_mac_share (seen running), path, ships.
        """
        return frames.candidates(self.summary)

    def latencies(self) -> "pd.DataFrame":
        """A row a contender, device and batch size.

        Columns: candidate, runtime, device, batch_size, threads, p50_ms, mean_ms, std_ms (milliseconds a call of the
        whole batch), speedup (over eager FP32), speedup_over_best_fp32, each with _low and _high (95%), best_fp32.
        """
        return frames.latencies(self.summary)

    def rounds(self) -> "pd.DataFrame":
        """A row a round: candidate, runtime, device, batch_size, round, launch, disturbed, p50_ms (milliseconds)."""
        return frames.rounds(self.summary)

    def layers(self) -> "pd.DataFrame":
        """A row a layer of a quantized file.

        Columns: candidate, layer, macs (of one sample), int8 (in the code), reason (why not), kernel and ran_int8 (seen
        running).
        """
        return frames.layers(self.stages())

    def trials(self) -> "pd.DataFrame":
        """A row a trial of the run's sweeps: columns sweep (ptq, qat or layers), config/<key>, top1 (of
        another metric: value), error and others.

        What a sweep's trials do not have is missing in its rows. Raises UserError if the run has no finished sweep.
        """
        import pandas as pd

        store = store_of(self.folder)
        tables = []
        for name, stage in self.record["stages"].items():
            record = store.find(stage["kind"], stage["fingerprint"]) if name.startswith("sweep/") else None
            if record is not None:
                table = pd.read_parquet(store.file(record, TRIALS))
                table.insert(0, "sweep", name.removeprefix("sweep/"))
                tables.append(table)
        if not tables:
            raise UserError(f"{self.folder.name} has no finished sweep", "its experiment names none, or it did not end")
        return pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]

    def page(self, output: "str | os.PathLike[str] | None" = None) -> Path:
        """Write the run's page (what `raq report` writes); where it is. UserError if it cannot be written."""
        from raq.page.run_page import FILE, write_page

        path = self.folder / FILE if output is None else Path(output)
        write_page(self.folder, path)
        return path

    def export(self, output: "str | os.PathLike[str]", candidate: str | None = None) -> Path:
        """Write a candidate as a folder to deploy (what `raq export` writes); None: the one that the verdict ships.

        Raises UserError for a candidate that cannot be exported, and for a folder that is there already.
        """
        from raq.bundle.write import export

        export(self.folder, Path(output), candidate)
        return Path(output)

    def __repr__(self) -> str:
        return f"<raq run {printable(self.record['id'])}: {printable(self.verdict['why'])}>"

    def _repr_html_(self) -> str:
        """What a notebook shows; every text of a record is escaped."""
        title = f"{self.record['experiment']}, run {self.record['id']}"
        tables = [self.candidates().drop(columns=["path", "resident_bytes"], errors="ignore"), self.latencies()]
        shown = [tables[0], tables[1][[key for key in SHOWN if key in tables[1]]]]
        html = [
            table.to_html(index=False, escape=True, float_format="%.4g", na_rep="") for table in shown if len(table)
        ]
        said = f"<p><b>{escape(printable(title))}</b></p><p>{escape(printable(self.verdict['why']))}</p>"
        return said + "".join(html)
