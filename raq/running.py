"""A run from start to end: what is asked, what is known, the plan, the cluster, the run's own record.

Imports neither torch nor ray at its top; a run with nothing to do starts neither.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from raq.doctor import before_run
from raq.environment import versions
from raq.errors import RaqError, UserError
from raq.experiment.load import Given, load_experiment
from raq.lazy import install_hint
from raq.plan.candidates import candidates_of
from raq.plan.expected import expected_s
from raq.plan.kinds import KINDS
from raq.plan.preflight import refuse_model_ahead
from raq.plan.prepare import DryRun, Prepared, prepare
from raq.plan.requirements import check_results
from raq.plan.stages import Stage
from raq.plan.stale import earlier_runs, stale_stages
from raq.run_record import recorded, same_run, write_run
from raq.store.local import Store
from raq.store.object_storage import subscribed
from raq.store.opening import open_store
from raq.tracking.tracker import refuse_missing, start_tracking

if TYPE_CHECKING:
    from raq.cluster.nodes import Node


class Listener(Protocol):
    """Who is notified of how a run goes."""

    def begin(self, plan: Sequence[Stage], stale: Mapping[str, str], output: TextIO) -> None:
        """The plan, the stages that will run with why, and the real standard output."""

    def stage(self, name: str, event: Mapping[str, Any]) -> None:
        """Something of a stage: its state, its progress, its results."""

    def note(self, text: str) -> None:
        """Something that is of no stage, such as a storage that does not answer."""

    def end(self) -> None:
        """No more will come."""


@dataclass(frozen=True)
class Outcome:
    """What a run left: its folder, and the stages that it had to do."""

    folder: Path
    ran: list[str]


def run(
    given: Given,
    overrides: Sequence[str],
    results: "str | Path",
    listener: Listener,
    address: str | None = None,
    fresh: bool = False,
    wait_s: float = 0.0,
) -> Outcome:
    """Do what is stale of the experiment and leave a run's record; without stale stages, find the run that did it.

    wait_s: how long to wait for nodes of the cluster at `address` that stages need, now and when some are lost.

    Raises RaqError for what went wrong; the run's record then says so, and finished stages are kept.
    """
    store = open_store(results)
    if address is None:
        prepared = prepare(given, overrides)
        with store.locked():
            return _complete(prepared, store, listener, fresh)
    with store.locked(), _joined(given, overrides, address, store.root, wait_s) as joined:
        return _complete(joined.prepared, store, listener, fresh, joined)


@dataclass(frozen=True)
class _Joined:
    """An experiment planned for a cluster that was joined, the cluster's nodes, the real output."""

    prepared: Prepared
    nodes: "list[Node]"
    output: TextIO
    wait_s: float


@contextmanager
def _joined(
    given: Given, overrides: Sequence[str], address: str, logs: Path, wait_s: float = 0.0
) -> "Iterator[_Joined]":
    """The cluster at `address`, when it has the nodes that are asked for, or after wait_s; Ray's output goes to `logs`.

    The plan depends on what the cluster's machines are, so they are asked first.
    """
    from raq.cluster.session import cluster, output_to

    asked = load_experiment(given, overrides)  # what is wrong is said before it is joined
    with output_to(logs / "connect.log") as output, cluster(address, logs):
        from raq.cluster.actors import machine_to_measure_on
        from raq.cluster.resources import nodes_in_time

        nodes = nodes_in_time(asked, wait_s, output)
        where = machine_to_measure_on(nodes, asked.resources.bench.labels)
        yield _Joined(prepare(given, overrides, where), nodes, output, wait_s)


def dry_run(given: Given, overrides: Sequence[str], results: "str | Path", address: str | None = None) -> DryRun:
    """What a run would do, here or on the cluster.

    Raises UserError for what is wrong with the experiment, and for a stage that none of the nodes can do.
    """
    from raq.cluster.nodes import local_node
    from raq.cluster.resources import placement

    store = open_store(results)
    if address is None:
        prepared, nodes = prepare(given, overrides), [local_node()]
    else:
        with (
            tempfile.TemporaryDirectory(prefix="raq-plan-") as scratch,
            _joined(given, overrides, address, Path(scratch)) as joined,
        ):
            prepared, nodes = joined.prepared, joined.nodes
    stale = stale_stages(prepared.plan, store)
    refuse_model_ahead(prepared, stale)
    where = {stage.name: placement(stage, nodes) for stage in prepared.plan if stage.name in stale}
    took_s = expected_s(prepared.plan, stale, earlier_runs(store), prepared.experiment.name, store)
    return DryRun(prepared.plan, stale, where, took_s, prepared.notes)


def _complete(
    prepared: Prepared,
    store: Store,
    listener: Listener,
    fresh: bool,
    joined: _Joined | None = None,
) -> Outcome:
    """Do the stale stages on the cluster that was joined, or on one started here if there are any."""
    stale = stale_stages(prepared.plan, store, fresh)
    for stage in prepared.plan:
        results = store.results(stage.kind, stage.fingerprint)
        if stage.name not in stale and results is not None:
            check_results(stage, results, prepared.experiment.require)
    if not stale:
        same = same_run(store, prepared)
        return Outcome(same or write_run(store, store.new_run(prepared.experiment.name), prepared, {}), [])
    from raq.cluster.nodes import local_node
    from raq.cluster.resources import unguarded_note
    from raq.cluster.session import cluster, output_to

    _refuse_what_cannot_be(prepared, stale, store, joined.nodes if joined else [local_node()])
    note = unguarded_note(prepared.plan, joined.nodes) if joined else None
    if note is not None:
        prepared = replace(prepared, notes=(*prepared.notes, note))
    refuse_model_ahead(prepared, stale)
    delete_work_on_old_inputs(prepared.plan, stale, store, fresh)
    folder = store.new_run(prepared.experiment.name)
    trackers = start_tracking(prepared.experiment, folder, listener.note)
    with recorded(store, folder, prepared, stale), ExitStack() as stack:
        output = stack.enter_context(output_to(folder / "logs" / "driver.log")) if joined is None else joined.output
        listener.begin(prepared.plan, stale, output)
        stack.enter_context(subscribed(listener.note))
        stack.callback(listener.end)
        stack.push(trackers.ended)

        def tell(name: str, event: Mapping[str, Any]) -> None:
            listener.stage(name, event)
            trackers.stage(name, event)

        wait_s = joined.wait_s if joined else 0.0
        nodes = joined.nodes if joined else stack.enter_context(cluster(None, folder / "logs"))
        from raq.cluster.driver import Driver

        driver = Driver(prepared.experiment, prepared.plan, store, folder, nodes, tell, str(Path.cwd()), wait_s)
        driver.run(stale)
    trackers.finished(folder)
    return Outcome(folder, list(stale))


def delete_work_on_old_inputs(plan: Iterable[Stage], stale: Mapping[str, str], store: Store, fresh: bool) -> None:
    """What an unfinished stage has so far stands on its inputs: where one is made anew, it begins anew too."""
    for stage in plan:
        if fresh or (stage.name in stale and any(name in stale for name in stage.inputs.values())):
            store.delete_work(stage.kind, stage.fingerprint)


def _refuse_what_cannot_be(prepared: Prepared, stale: Mapping[str, str], store: Store, nodes: "list[Node]") -> None:
    """What these nodes cannot do, said before anything is done."""
    from raq.cluster.resources import demand_of

    for stage in prepared.plan:
        if stage.name in stale:
            demand_of(stage, nodes)
    for candidate in candidates_of(prepared.experiment):
        runtime = candidate.runtime
        other = () if candidate.quantizer is None else (candidate.quantizer,)
        missing = [
            library
            for library, found in versions((*runtime.libraries, *runtime.made_by, *other)).items()
            if not found and find_spec(library) is None  # a distribution may have another name
        ]
        if missing:
            extra = candidate.quantizer or runtime.name
            asked = f"{candidate.name}.backend: {candidate.backend}"
            if candidate.quantizer is not None:
                asked = f"ptq.others: {candidate.quantizer}"
            elif runtime.name in prepared.experiment.lower.runtimes:
                asked = f"lower.runtimes: {runtime.name}"
            raise UserError(
                f"{asked} needs {' and '.join(missing)}, not installed here",
                install_hint(extra),
            )
    refuse_missing(prepared.experiment.tracking)
    compiles = any(KINDS[stage.kind].needs_compiler and stage.name in stale for stage in prepared.plan)
    wrong = before_run(store.root, compiles=compiles)
    if wrong:
        raise RaqError("; ".join(f"{finding.name}: {finding.value}" for finding in wrong), wrong[0].hint)
