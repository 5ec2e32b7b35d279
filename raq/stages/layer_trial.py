"""One trial of the sweep of layers, and what its trials share: a program with a switch a layer, and its ranges.

Plain torch, never ray; torch is imported inside the functions. One program is compiled for all trials and runs on the
validation images; trials are kept by what they depend on, as those of calibrations are.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raq.errors import StageError
from raq.stages.call import Call, Progress, trials_folder
from raq.stages.chosen import chosen_calibration
from raq.stages.inputs import example_input, read_dataset, read_trained_network, scorer
from raq.stages.trials import BASELINE, Judged, keep_answers, keep_one, read_answers, save_scores
from raq.store.files import atomic_write, exclusive_lock, short_digest, write_json
from raq.store.views import View, view_file
from raq.sweep.layers import Config, LayerCost, quantized

if TYPE_CHECKING:
    from raq.model.dataset import Dataset
    from raq.quantize.ranges import Ranges


AT_ONCE = 64  # samples
LAYERS_FILE, OUTPUTS, RANGES = "layers.json", "fp32-outputs.npy", "ranges.npz"


class _Layer(View):
    name: str
    mac_share: float


class _Layers(View):
    layers: list[_Layer]


class TrialRecord(Judged):
    """A trial's own record. noise: of its outputs, of FP32's own."""

    config: Config
    noise: float


@dataclass(frozen=True)
class _Loaded:
    """What a process reads once for all its trials. fp32: its outputs, float32 [images, ...]."""

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


@keep_one
def _loaded(trials: _Trials) -> _Loaded:
    from raq.artifact.inductor import load
    from raq.quantize.ranges import load_ranges

    call, folder = trials.call, trials.folder
    fp32 = np.load(folder / OUTPUTS, allow_pickle=False, mmap_mode="r")
    order = [layer.name for layer in read_layers(call)]
    return _Loaded(read_dataset(call), load(_compiled(call)), load_ranges(folder / RANGES), fp32, order)


def read_layers(call: Call) -> list[LayerCost]:
    """The layers that are quantized, in the graph's order."""
    known = view_file(_Layers, trials_folder(call) / LAYERS_FILE)
    return [LayerCost(layer.name, layer.mac_share) for layer in known.layers]


def prepare_layer_sweep(call: Call, progress: Progress) -> None:
    """Calibrate, compile the program with a switch a layer, evaluate FP32; what is there stays."""
    import torch

    from raq.environment import available_cpus
    from raq.model.evaluation import outputs_and_parts
    from raq.quantize.export import export_network, layers
    from raq.quantize.ptq import calibrate, prepare_graph
    from raq.quantize.ranges import ranges, save_ranges, switchable

    folder = trials_folder(call)
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(min(call.cpus * call.workers, len(available_cpus())))  # no trial runs yet
    settings, seed, reduce_range = chosen_calibration(call)
    network, dataset = read_trained_network(call), read_dataset(call)
    if not ((folder / OUTPUTS).is_file() and (folder / BASELINE).is_file()):
        progress({"text": "evaluating FP32"})
        judge, every = scorer(call), np.arange(dataset.size("validation"))
        outputs, parts = outputs_and_parts(network, dataset, every, judge, split="validation")
        save_scores(folder / BASELINE, judge.together(parts))
        with atomic_write(folder / OUTPUTS) as scratch:
            np.save(scratch, outputs)
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
    known = record_of(call, config)
    if known is not None:
        return known
    import torch

    from raq.artifact.parametric import with_ranges
    from raq.model.evaluation import outputs_and_parts

    torch.set_num_threads(call.cpus)
    loaded = _loaded(_Trials(trials_folder(call), call))
    dataset, fp32 = loaded.dataset, loaded.fp32
    switched = with_ranges(loaded.program, loaded.ranges, quantized(config, loaded.order))
    judge, samples, record = scorer(call), dataset.size("validation"), path_of(call, config)
    outputs, parts = outputs_and_parts(switched, dataset, np.arange(samples), judge, split="validation")
    judged = keep_answers(call, record, judge.together(parts), samples)
    noise = _noise(outputs, fp32)
    found = TrialRecord(config=config, noise=noise, **judged)
    write_json(record, found.model_dump())
    return found


def _noise(outputs: Any, fp32: Any) -> float:
    """Mean square of what differs from FP32's own, in its own. StageError if that is 0."""
    different, own = 0.0, 0.0
    for start in range(0, len(fp32), AT_ONCE):  # maps of many samples are large
        part = np.asarray(fp32[start : start + AT_ONCE], dtype=np.float64)
        different += float(np.square(outputs[start : start + AT_ONCE] - part).sum())
        own += float(np.square(part).sum())
    if not own > 0:
        raise StageError("all outputs of FP32 are 0 on the validation samples", "its layers cannot be told apart")
    return different / own


def path_of(call: Call, config: Config) -> Path:
    """Where a trial's record is."""
    return trials_folder(call) / f"{short_digest(config)}.json"


def record_of(call: Call, config: Config) -> TrialRecord | None:
    """A trial's record; None if it is not there, or a file of it is damaged."""
    path = path_of(call, config)
    return view_file(TrialRecord, path) if read_answers(call, path) is not None else None
