"""The stage that looks for the layers that quantization hurts, and for configurations that leave some of them in float.

Plain torch, never ray; torch is imported inside the functions. One program is compiled for all trials, with a switch a
layer, and runs on the validation images; trials are kept by what they depend on, as those of calibrations are.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from raq.errors import StageError
from raq.model.dataset import Dataset
from raq.quantize.ranges import Ranges
from raq.stages.call import Call, Progress, Results, trials_folder
from raq.stages.chosen import chosen_calibration
from raq.stages.inputs import example_input, read_dataset, read_trained_network
from raq.stages.trials import read_predictions, write_table
from raq.statistics import paired_drop
from raq.store.files import atomic_write, digest, exclusive_lock, short_digest, write_json
from raq.store.settings import LayerSweepSettings
from raq.store.views import View, view_file
from raq.sweep.layers import (
    LAYERS,
    MODE,
    ONLY,
    WITHOUT,
    Config,
    Configuration,
    LayerCost,
    choose_configurations,
    first_trials,
    greedy_orderings,
    only,
    quantized,
    without,
)

LAYERS_FILE, LOGITS, RANGES = "layers.json", "fp32-logits.npy", "ranges.npz"
COLUMNS = ("top1", "correct", "images", "drop_points", "sqnr_db", "float_mac_share", "error")
RunAll = Callable[[Sequence[Config]], Mapping[int, str]]  # the trials; what went wrong, by their number


class _Layer(View):
    name: str
    mac_share: float


class _Layers(View):
    layers: list[_Layer]


class TrialRecord(View):
    """A trial's own record. noise: of its logits, of FP32's own."""

    config: Config
    noise: float
    correct: int
    images: int
    top1: float


@dataclass(frozen=True)
class _Loaded:
    """What a process reads once for all its trials. fp32: its logits, float32 [images, classes]."""

    dataset: "Dataset"
    program: Any
    ranges: "Ranges"
    fp32: Any
    order: list[str]


@dataclass(frozen=True)
class _Trials:
    """The trials that are kept in `folder`; what equal ones need is read once."""

    folder: Path
    call: Call = field(compare=False)


@lru_cache(maxsize=1)
def _loaded(trials: _Trials) -> _Loaded:
    from raq.artifact.inductor import load
    from raq.quantize.ranges import load_ranges

    call, folder = trials.call, trials.folder
    fp32 = np.load(folder / LOGITS, allow_pickle=False)
    order = [layer.name for layer in read_layers(call)]
    return _Loaded(read_dataset(call), load(_compiled(call)), load_ranges(folder / RANGES), fp32, order)


def layer_sweep_stage(call: Call, progress: Progress) -> Results:
    """All trials in this process, one after the other."""

    def run_all(configs: Sequence[Config]) -> dict[int, str]:
        for number, config in enumerate(configs):
            run_layer_trial(call, config)
            progress({"share": (number + 1) / len(configs), "text": f"trial {number + 1} of {len(configs)}"})
        return {}

    return search_layers(call, progress, run_all)


def search_layers(call: Call, progress: Progress, run_all: RunAll) -> Results:
    """Each layer alone and each left out, then the configurations that follow from that, by `run_all`; the choice."""
    prepare_layer_sweep(call, progress)
    order = [layer.name for layer in read_layers(call)]
    first = first_trials(order)
    failed = {digest(first[n]): error for n, error in run_all(first).items()}
    found = {digest(config): record for config in first if (record := _record(call, config)) is not None}
    everything = found.get(digest(without([], order)))
    if everything is None:
        raise StageError(f"the trial that quantizes all layers failed: {failed}", "see the log")
    left_out, alone = (
        {name: found[digest(config(name))].noise for name in order if digest(config(name)) in found}
        for config in (lambda name: without([name], order), only)
    )
    layers = [layer for layer in read_layers(call) if layer.name in left_out and layer.name in alone]
    most = call.read(LayerSweepSettings).sweep.max_float_layers
    orderings = greedy_orderings(layers, everything.noise, left_out, alone, most)
    mixed = [without(names, order) for names in orderings]
    failed |= {digest(mixed[n]): error for n, error in (run_all(mixed) if mixed else {}).items()}
    return finish_layer_sweep(call, [*first, *(m for m in mixed if m not in first)], failed)


def read_layers(call: Call) -> list[LayerCost]:
    """The layers that are quantized, in the graph's order."""
    known = view_file(_Layers, trials_folder(call) / LAYERS_FILE)
    return [LayerCost(layer.name, layer.mac_share) for layer in known.layers]


def prepare_layer_sweep(call: Call, progress: Progress) -> None:
    """Calibrate, compile the program with a switch a layer, evaluate FP32; what is there stays."""
    import torch

    from raq.environment import available_cpus
    from raq.model.evaluation import logits
    from raq.quantize.export import export_network, layers
    from raq.quantize.ptq import calibrate, prepare_graph
    from raq.quantize.ranges import ranges, save_ranges, switchable

    folder = trials_folder(call)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(min(call.cpus * call.workers, len(available_cpus())))  # no trial runs yet
    settings, seed, reduce_range = chosen_calibration(call)
    network, dataset = read_trained_network(call), read_dataset(call)
    if not (folder / LOGITS).is_file():
        progress({"text": "evaluating FP32"})
        every = np.arange(len(dataset.validation_labels))
        with atomic_write(folder / LOGITS) as scratch:
            np.save(scratch, logits(network, dataset, every, split="validation"))
    if not (folder / RANGES).is_file():
        progress({"text": "calibrating"})
        exported = export_network(network, example_input(call))
        macs: Counter[str] = Counter()  # of a module that is called several times, those of all its calls
        for _, layer in layers(exported.graph_module.graph):
            macs[layer.name] += layer.macs
        prepared = prepare_graph(
            exported.module(),
            settings.backend,
            settings.calibration,
            reduce_range=reduce_range,
            per_channel=settings.per_channel,
        )
        shares = [{"name": name, "mac_share": macs[name] / macs.total()} for name in switchable(prepared)]
        write_json(folder / LAYERS_FILE, {"layers": shares})
        calibrate(prepared, dataset, settings.calibration, seed)
        with atomic_write(folder / RANGES) as scratch:
            save_ranges(scratch, ranges(prepared))
    progress({"text": "compiling one program for all configurations"})
    _compiled(call)


def _compiled(call: Call) -> Path:
    """The program with a switch a layer, compiled for this machine's CPU if it is not there."""
    from raq.artifact.parametric import compile_for_all_ranges
    from raq.environment import machine
    from raq.quantize.ptq import prepare

    folder = trials_folder(call)
    path = folder / f"switched-{short_digest(machine().as_record('cpu', 'features'))}.pt2"
    with exclusive_lock(folder / "compiling"):
        if not path.is_file():
            settings, _, reduce_range = chosen_calibration(call)
            example = example_input(call)
            calibration = settings.calibration.model_copy(update={"observer": "minmax"})
            prepared = prepare(
                read_trained_network(call),
                example,
                settings.backend,
                calibration,
                reduce_range=reduce_range,
                per_channel=settings.per_channel,
            )
            with atomic_write(path) as scratch:
                compile_for_all_ranges(prepared, example, scratch, [layer.name for layer in read_layers(call)])
    return path


def run_layer_trial(call: Call, config: Config) -> TrialRecord:
    """One configuration on the validation images, its record kept; the record that is there, if there is one."""
    known = _record(call, config)
    if known is not None:
        return known
    import torch

    from raq.artifact.parametric import with_ranges
    from raq.model.evaluation import logits

    torch.set_num_threads(call.cpus)
    loaded = _loaded(_Trials(trials_folder(call), call))
    dataset, fp32 = loaded.dataset, loaded.fp32
    switched = with_ranges(loaded.program, loaded.ranges, quantized(config, loaded.order))
    answers = logits(switched, dataset, np.arange(len(dataset.validation_labels)), split="validation")
    predicted = answers.argmax(1)
    record = _path(call, config)
    with atomic_write(record.with_suffix(".npy")) as scratch:
        np.save(scratch, predicted.astype(np.int32))
    correct = int((predicted == dataset.validation_labels).sum())
    noise = float(np.square(answers - fp32).sum() / np.square(fp32).sum())
    found = TrialRecord(
        config=config, noise=noise, correct=correct, images=len(predicted), top1=correct / len(predicted)
    )
    write_json(record, found.model_dump())
    return found


def _path(call: Call, config: Config) -> Path:
    return trials_folder(call) / f"{short_digest(config)}.json"


def _record(call: Call, config: Config) -> TrialRecord | None:
    path = _path(call, config)
    return view_file(TrialRecord, path) if path.is_file() and read_predictions(path) is not None else None


def finish_layer_sweep(call: Call, configs: Sequence[Config], failed: Mapping[str, str]) -> Results:
    """The table of all trials, the sensitivity of each layer, the configurations chosen.

    failed: by a trial's digest, why. Raises StageError if fewer were found than are asked for.
    """
    layers, labels = read_layers(call), read_dataset(call).validation_labels
    order = [layer.name for layer in layers]
    baseline = np.load(trials_folder(call) / LOGITS, allow_pickle=False).argmax(1) == labels
    done = {digest(c): row for c in configs if (row := _row_of_trial(call, c, layers, labels, baseline)) is not None}
    everything = done[digest(without([], order))]
    tried = [row for row in done.values() if row is not everything and row.config[MODE] == WITHOUT]
    asked = call.read(LayerSweepSettings)
    count = asked.sweep.candidates
    chosen, why = choose_configurations(tried, everything, asked.max_drop, count)
    if len(chosen) < count:
        raise StageError(
            f"{len(chosen)} configurations were found, and sweep.layers.candidates asks for {count}", "lower it"
        )
    trials = [
        {"config": c, "error": failed.get(digest(c), "")} if (row := done.get(digest(c))) is None else _plain(row)
        for c in configs
    ]
    write_table(Path(call.folder), trials, COLUMNS)
    return {
        "trials": trials,
        "validation_images": len(labels),
        "baseline_top1": float(baseline.mean()),
        "all_quantized": _plain(everything),
        "sensitivity": _sensitivity(layers, list(done.values())),
        "choice": {"mixtures": [asdict(each) for each in chosen], "why": why},
    }


def _plain(row: Configuration) -> Results:
    """A trial as the record has it, without what its config says already."""
    return {key: value for key, value in asdict(row).items() if key != "layers"}


def _row_of_trial(
    call: Call, config: Config, layers: Sequence[LayerCost], labels: Any, baseline: Any
) -> Configuration | None:
    """A trial's record with what it loses against FP32, and its share of MACs in float; None if it failed.

    labels: int [N], of the validation images; baseline: bool [N], which of them FP32 classifies rightly.
    """
    record = _record(call, config)
    if record is None:
        return None
    drop, interval = paired_drop(baseline, read_predictions(_path(call, config)) == labels)
    is_quantized = quantized(config, [layer.name for layer in layers])
    return Configuration(
        layers=config[LAYERS],
        drop_points=drop,
        drop_interval=interval,
        sqnr_db=-10 * float(np.log10(record.noise)) if record.noise > 0 else None,
        float_mac_share=sum(layer.mac_share for layer, on in zip(layers, is_quantized, strict=True) if not on),
        **record.model_dump(),
    )


def _sensitivity(layers: Sequence[LayerCost], done: Sequence[Configuration]) -> list[Results]:
    """By layer, what quantizing it alone, and leaving it alone in float, came to; None where that trial failed."""
    found = {
        mode: {t.layers: {"drop_points": t.drop_points, "sqnr_db": t.sqnr_db} for t in of_mode}
        for mode, of_mode in ((m, [t for t in done if t.config[MODE] == m]) for m in (ONLY, WITHOUT))
    }
    return [
        {
            "layer": layer.name,
            "mac_share": layer.mac_share,
            "only": found[ONLY].get(layer.name),
            "without": found[WITHOUT].get(layer.name),
        }
        for layer in layers
    ]
