"""The stage that looks for the layers that quantization hurts, and for configurations that leave some of them in float.

Plain torch, never ray; torch is imported inside the functions. One program is compiled for all trials, with a switch a
layer, and runs on the validation images; trials are kept by what they depend on, as those of calibrations are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from raq.errors import StageError
from raq.stages.call import Call, Progress, Results
from raq.stages.layer_trial import path_of, prepare_layer_sweep, read_layers, record_of, run_layer_trial
from raq.stages.trials import columns_of, read_answers, read_baseline, write_table
from raq.store.files import digest
from raq.store.settings import LayerSweepSettings
from raq.store.sweep_results import as_written, with_written_names, written_name
from raq.sweep.answers import Answers
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
    layers, asked = read_layers(call), call.read(LayerSweepSettings)
    order = [layer.name for layer in layers]
    samples = next(found.images for config in configs if (found := record_of(call, config)) is not None)
    baseline = read_baseline(call, samples)
    done = {digest(c): row for c in configs if (row := _row_of_trial(call, c, layers, baseline)) is not None}
    everything = done[digest(without([], order))]
    tried = [row for row in done.values() if row is not everything and row.config[MODE] == WITHOUT]
    count = asked.sweep.candidates
    chosen, why = choose_configurations(tried, everything, asked.max_drop, count, asked.metric)
    if len(chosen) < count:
        raise StageError(
            f"{len(chosen)} configurations were found, and sweep.layers.candidates asks for {count}", "lower it"
        )
    trials = [
        with_written_names(_plain(row), asked.metric)
        if (row := done.get(digest(c))) is not None
        else {"config": c, "error": failed.get(digest(c), "")}
        for c in configs
    ]
    results = {
        "trials": trials,
        "validation_images": samples,
        "baseline_value": baseline.value,
        "all_quantized": _plain(everything),
        "sensitivity": _sensitivity(layers, list(done.values())),
        "choice": {"mixtures": [{**_plain(each), "layers": each.layers} for each in chosen], "why": why},
    }
    columns = (*columns_of(asked.metric), written_name("drop", asked.metric), "sqnr_db", "float_mac_share", "error")
    write_table(Path(call.folder), trials, columns)
    return as_written(results, asked.metric)


def _plain(row: Configuration) -> Results:
    """A trial as the record has it, without what its config says already."""
    return {key: value for key, value in asdict(row).items() if key != "layers" and (key, value) != ("correct", None)}


def _row_of_trial(call: Call, config: Config, layers: Sequence[LayerCost], baseline: Answers) -> Configuration | None:
    """A trial's record with what it loses against FP32, and its share of MACs in float; None if it failed."""
    record, answers = record_of(call, config), read_answers(call, path_of(call, config))
    lost = answers.worse_than(baseline) if answers is not None else None
    if record is None or lost is None:
        return None
    is_quantized = quantized(config, [layer.name for layer in layers])
    return Configuration(
        layers=config[LAYERS],
        drop=lost.value,
        drop_interval=lost.interval(),
        sqnr_db=-10 * float(np.log10(record.noise)) if record.noise > 0 else None,
        float_mac_share=sum(layer.mac_share for layer, on in zip(layers, is_quantized, strict=True) if not on),
        **record.model_dump(exclude={"resampled"}),
    )


def _sensitivity(layers: Sequence[LayerCost], done: Sequence[Configuration]) -> list[Results]:
    """By layer, what quantizing it alone, and leaving it alone in float, came to; None where that trial failed."""
    found = {
        mode: {t.layers: {"drop": t.drop, "sqnr_db": t.sqnr_db} for t in of_mode}
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
