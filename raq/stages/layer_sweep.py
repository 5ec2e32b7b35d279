"""The stage that looks for the layers that quantization hurts, and for configurations that leave some of them in float.

Plain torch, never ray; torch is imported inside the functions. One program is compiled for all trials, with a switch a
layer, and runs on the validation images; trials are kept by what they depend on, as those of calibrations are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from raq.errors import StageError
from raq.stages.call import Call, Progress, Results, trials_folder
from raq.stages.inputs import read_dataset
from raq.stages.layer_trial import LOGITS, path_of, prepare_layer_sweep, read_layers, record_of, run_layer_trial
from raq.stages.trials import read_predictions, write_table
from raq.statistics import paired_drop
from raq.store.files import digest
from raq.store.settings import LayerSweepSettings
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

COLUMNS = ("top1", "correct", "images", "drop_points", "sqnr_db", "float_mac_share", "error")
RunAll = Callable[[Sequence[Config]], Mapping[int, str]]  # the trials; what went wrong, by their number


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
    found = {digest(config): record for config in first if (record := record_of(call, config)) is not None}
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


def finish_layer_sweep(call: Call, configs: Sequence[Config], failed: Mapping[str, str]) -> Results:
    """The table of all trials, the sensitivity of each layer, the configurations chosen.

    failed: by a trial's digest, why. Raises StageError if fewer were found than are asked for.
    """
    layers, labels = read_layers(call), read_dataset(call).labels("validation")
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
    record = record_of(call, config)
    if record is None:
        return None
    drop, interval = paired_drop(baseline, read_predictions(path_of(call, config)) == labels)
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
