"""The stage that tries calibrations: what is shared by its trials, one trial, and what they come to.

Plain torch, never ray; torch is imported inside the functions. Trials are kept by what they depend on, outside the
stage's own folder: a sweep that is extended, or was interrupted, finds those that are there.
"""

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raq.errors import StageError
from raq.experiment.ptq import Calibration
from raq.experiment.sweep import OBSERVER, PER_CHANNEL, PERCENTILE, REDUCE_RANGE, SEED, SIZE, Config
from raq.stages.call import Call, Progress, Results, trials_folder
from raq.stages.chosen import with_config
from raq.stages.inputs import example_input, read_dataset, read_trained_network, scorer
from raq.stages.trials import (
    Judged,
    columns_of,
    evaluate_baseline,
    keep_answers,
    keep_one,
    metric_of,
    read_answers,
    read_baseline,
    reported,
    write_table,
)
from raq.store.files import atomic_write, exclusive_lock, short_digest, write_json
from raq.store.settings import PtqSettings, PtqSweepSettings
from raq.store.sweep_results import as_written
from raq.store.views import view_file
from raq.sweep.ptq import choose, curve, grid, only_calibrates

if TYPE_CHECKING:
    from raq.model.dataset import Dataset
    from raq.model.evaluation import Network
    from raq.quantize.ranges import Ranges

NETWORK = "network.pt2"


@dataclass(frozen=True)
class _Loaded:
    """What a process reads once for all its trials of one program."""

    dataset: "Dataset"
    program: Any


@dataclass(frozen=True)
class _Program:
    """The compiled program at `path`; equal programs are read once."""

    path: Path
    call: Call = field(compare=False)


@keep_one
def _loaded(program: _Program) -> _Loaded:
    from raq.artifact.inductor import load

    return _Loaded(read_dataset(program.call), load(program.path))


class _TrialRecord(Judged):
    """A trial's own record. evaluation_s: seconds that its evaluation took."""

    config: Config
    evaluation_s: float


def ptq_sweep_stage(call: Call, progress: Progress) -> Results:
    """All trials in this process, one after the other."""
    prepare_ptq_sweep(call, progress)
    configs = all_configs(call)
    for number, config in enumerate(configs):
        run_ptq_trial(call, config)
        progress({"share": (number + 1) / len(configs), "text": f"trial {number + 1} of {len(configs)}"})
    return finish_ptq_sweep(call, configs, {})


def all_configs(call: Call) -> list[Config]:
    """The trials of this stage."""
    asked = call.read(PtqSweepSettings)
    return grid(asked.ptq, asked.sweep, reduce_range=asked.reduce_range)


def prepare_ptq_sweep(call: Call, progress: Progress) -> None:
    """Export the network, compile the program that stands for all calibrations, evaluate FP32; what is there stays."""
    import torch

    from raq.environment import available_cpus
    from raq.quantize.convert import save_program
    from raq.quantize.export import export_network

    folder = trials_folder(call)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(min(call.cpus * call.workers, len(available_cpus())))  # no trial runs yet
    network = read_trained_network(call)
    if not (folder / NETWORK).is_file():
        progress({"text": "exporting the network"})
        with atomic_write(folder / NETWORK) as scratch:
            save_program(export_network(network, example_input(call)), scratch)
    plain = [config for config in all_configs(call) if only_calibrates(config)]
    graphs = list({(c[PER_CHANNEL], c[REDUCE_RANGE]): c for c in plain}.values())
    if graphs:
        progress({"text": f"compiling {len(graphs)} program{'s' * (len(graphs) > 1)} for all calibrations"})
    for config in graphs:
        _compiled(call, config)
    evaluate_baseline(call, network, progress)


def _compiled(call: Call, config: Config) -> Path:
    """The program that stands for all calibrations of this one's graph, compiled for this machine's CPU if need be."""
    from raq.artifact.parametric import compile_for_all_ranges
    from raq.environment import machine
    from raq.quantize.convert import load_program
    from raq.quantize.ranges import prepared_from

    folder, here = trials_folder(call), machine().as_record("cpu", "features")
    graph = {PER_CHANNEL: config[PER_CHANNEL], REDUCE_RANGE: config[REDUCE_RANGE]}
    path = folder / f"simulated-{short_digest({**graph, **here})}.pt2"
    with exclusive_lock(folder / "compiling"):
        if not path.is_file():
            ptq = call.read(PtqSettings).ptq
            prepared = prepared_from(
                load_program(folder / NETWORK),
                ptq.backend,
                Calibration(observer="minmax"),
                reduce_range=config[REDUCE_RANGE],
                per_channel=config[PER_CHANNEL],
            )
            with atomic_write(path) as scratch:
                compile_for_all_ranges(prepared, example_input(call), scratch)
    return path


def run_ptq_trial(call: Call, config: Config) -> Results:
    """One calibration on the validation images, its record kept; the record that is there, if there is one.

    The ranges of all sizes of a seed and observer come from one pass, which the first trial that needs them does.
    """
    record = trials_folder(call) / f"{short_digest(config)}.json"
    if read_answers(call, record) is not None:
        return reported(view_file(_TrialRecord, record), metric_of(call), "evaluation_s")
    import torch

    from raq.model.evaluation import score

    torch.set_num_threads(call.cpus)
    with _quantized(call, config) as (network, dataset):
        started = time.perf_counter()
        samples = dataset.size("validation")
        scores = score(network, dataset, scorer(call), np.arange(samples), split="validation")
        took_s = round(time.perf_counter() - started, 3)
    judged = keep_answers(call, record, scores, samples)
    found = _TrialRecord(config=config, evaluation_s=took_s, **judged)
    write_json(record, found.model_dump())
    return reported(found, metric_of(call), "evaluation_s")


@contextmanager
def _quantized(call: Call, config: Config) -> "Iterator[tuple[Network, Dataset]]":
    """The network as this trial quantizes it, and the data: the compiled program with the calibration's ranges; where
    methods beside calibration are tried, a graph of its own that torch simulates."""
    if only_calibrates(config):
        from raq.artifact.parametric import with_ranges

        loaded = _loaded(_Program(_compiled(call, config), call))
        yield with_ranges(loaded.program, _ranges(call, config, loaded.dataset)), loaded.dataset
        return
    from raq.quantize.methods import Methods, Source, quantize
    from raq.quantize.ptq import simulated

    dataset, ptq = read_dataset(call), with_config(call.read(PtqSettings).ptq, config)
    source = Source(
        read_trained_network(call), example_input(call), dataset, ptq.backend, ptq.calibration, config[SEED],
        config[REDUCE_RANGE], ptq.per_channel,
    )  # fmt: skip
    with simulated(quantize(source, Methods.asked(ptq)).prepared) as as_integers:
        yield as_integers, dataset


def _ranges(call: Call, config: Config, dataset: Any) -> "Ranges":
    """The ranges of this calibration; found for all sizes of its seed and observer in one pass, if they are not there.

    One process at a time does that, the others wait for it.
    """
    from raq.quantize.convert import load_program
    from raq.quantize.ranges import calibrate_nested, load_ranges, prepared_from, save_ranges

    folder = trials_folder(call)
    configs = all_configs(call)
    pass_folder = _pass_folder(folder, config)
    sizes = sorted({c[SIZE] for c in configs if only_calibrates(c) and _pass_folder(folder, c) == pass_folder})
    wanted = pass_folder / f"{config[SIZE]}.npz"
    pass_folder.mkdir(exist_ok=True)
    with exclusive_lock(pass_folder / "lock"):
        missing = [size for size in sizes if not (pass_folder / f"{size}.npz").is_file()]
        if config[SIZE] in missing:
            kept = [0]

            def keep(size: int, found: "Ranges") -> None:
                with atomic_write(pass_folder / f"{size}.npz") as scratch:
                    save_ranges(scratch, found)
                _count(pass_folder, size - kept[-1])
                kept.append(size)

            ptq = call.read(PtqSettings).ptq
            settings = with_config(ptq, config).calibration
            network = load_program(folder / NETWORK)
            prepared = prepared_from(network, ptq.backend, settings, reduce_range=config[REDUCE_RANGE])
            read = calibrate_nested(prepared, dataset, settings, config[SEED], missing, keep)
            _count(pass_folder, read - kept[-1])
    return load_ranges(wanted)


def _pass_folder(folder: Path, config: Config) -> Path:
    """Where the ranges of all sizes of a seed and observer are; how weights are rounded does not change them."""
    return folder / f"ranges-{short_digest({key: config[key] for key in (OBSERVER, PERCENTILE, REDUCE_RANGE, SEED)})}"


def _count(pass_folder: Path, images: int) -> None:
    """Note, in a file of this node, that so many more images were read to calibrate."""
    with (pass_folder / f"images-{platform.node()}").open("a") as counted:
        counted.write(f"{images}\n")


def finish_ptq_sweep(call: Call, configs: Sequence[Config], failed: Mapping[str, str]) -> Results:
    """The table of all trials, the curve and the choice. failed: by a trial's digest, what went wrong.

    Raises StageError if no trial finished.
    """
    folder = trials_folder(call)
    records = {short_digest(c): folder / f"{short_digest(c)}.json" for c in configs}
    answers = {name: found for name, path in records.items() if (found := read_answers(call, path)) is not None}
    if not answers:
        raise StageError(
            f"none of the {len(configs)} trials finished: {next(iter(failed.values()), '')}", "see the log"
        )
    done = {name: view_file(_TrialRecord, records[name]) for name in answers}
    trials = [{"digest": name, **reported(trial, metric_of(call), "evaluation_s")} for name, trial in done.items()]
    samples, asked = next(iter(answers.values())).samples, call.read(PtqSweepSettings)
    baseline = read_baseline(call, samples)
    rows = curve({name: trial.config for name, trial in done.items()}, answers, baseline)
    passes = {_pass_folder(folder, c) for c in configs if only_calibrates(c)}
    more = [c[SIZE] for c in configs if short_digest(c) in done and not only_calibrates(c)]  # each calibrates anew
    counts = [count for passed in passes for count in passed.glob("images-*")]
    images = [int(line) for count in counts for line in count.read_text().split()]
    not_done = [{"config": c, "error": failed[short_digest(c)]} for c in configs if short_digest(c) in failed]
    results: Results = {
        "trials": trials,
        "failed": not_done,
        "validation_images": samples,
        "baseline_value": baseline.value,
        "curve": [asdict(row) for row in rows],
        "choice": choose(rows, asked.seed, asked.margin, max(c[SIZE] for c in configs), asked.metric),
        "evaluation_s": round(sum(trial.evaluation_s for trial in done.values()), 3),
        "calibration_images": sum(images) + sum(more),
        "calibration_passes": len(passes) + len(more),
    }
    write_table(Path(call.folder), [*trials, *not_done], (*columns_of(asked.metric), "error"))
    return as_written(results, asked.metric)
