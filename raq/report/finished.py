"""A run that is there, for notebooks and scripts: `raq.open_run(folder)`. From records alone: neither torch nor ray."""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from raq.errors import UserError
from raq.report.types import RunSummary
from raq.store.local import read_run
from raq.store.object_storage import is_address
from raq.store.opening import open_store, store_of

if TYPE_CHECKING:
    import pandas as pd

TRIALS = "trials.parquet"


class Run:
    """A run's records: those of its folder, or of its address (s3://BUCKET/FOLDER/runs/ID)."""

    def __init__(self, path: "str | os.PathLike[str]") -> None:
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
        from raq.report.summary import summarise

        return summarise(self.folder)

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
