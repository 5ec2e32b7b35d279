"""The stage that evaluates the artifact that was saved, on every test image.

Plain torch, never ray; torch is imported inside the functions.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from raq.artifact.executed import KnownLayer
from raq.artifact.judgement import LedgerOfRecord, Lowered, evidence_of
from raq.artifact.runtimes import RUNTIMES, in_parts
from raq.lazy import resolve
from raq.stages.call import LOGITS, PREDICTIONS, SCORES, Call, Progress, Results, refuse_other_machine
from raq.stages.examples import keep_examples
from raq.stages.inputs import parity_chain, read_dataset, scorer
from raq.stages.programs import read_program
from raq.stages.thumbnails import keep_thumbnails
from raq.store.settings import ArtifactSettings, DataSettings
from raq.store.views import view_results

if TYPE_CHECKING:
    from raq.artifact.isolated import IsolatedProcess
    from raq.model.dataset import Dataset
    from raq.model.evaluation import Network
    from raq.model.parity import Chain


TRAIN_SAMPLE = 256


class _Artifact(Lowered):
    ledger: LedgerOfRecord


def evaluate_stage(call: Call, progress: Progress) -> Results:
    """Top-1 of the saved artifact on every test image, in a process without raq.

    Of a candidate that cannot be lowered on this machine, the quantized program is evaluated, by torch's own kernels.
    """
    from raq.artifact.isolated import IsolatedProcess

    asked = call.read(ArtifactSettings)
    dataset = read_dataset(call)
    whole = dataset if asked.data.test_limit is None else read_dataset(call, test_limit=None)
    chain = parity_chain(call, whole)
    if "program" in call.inputs:
        return _evaluate_program(call, dataset, chain)
    assert asked.runtime is not None, "what has an artifact has a runtime"
    runtime, device = RUNTIMES[asked.runtime], asked.device
    if runtime.is_native:
        refuse_other_machine(asked.machine)
    path = call.input("artifact") / runtime.file_name
    chain.go_on_from("lowered", call.input("artifact") / LOGITS)
    if runtime.refuse is not None:
        resolve(runtime.refuse)(path)
    started = time.perf_counter()
    with IsolatedProcess(path, device, call.cpus, runtime) as process:
        chain.seconds += time.perf_counter() - started - process.loaded.load_s
        network = process if asked.max_batch is None else in_parts(process, asked.max_batch)
        chain.step("reloaded", network)
        accuracy = _accuracy(call, dataset, network)
        results: Results = {"load_s": process.loaded.load_s, "resident_bytes": process.loaded.resident_bytes}
        results |= _executed(call, path, process)
        results |= keep_examples(call, dataset, network)
        if asked.kind == "fp32" and asked.metric.is_top1 and dataset.size("train"):
            results |= _of_training(call, dataset, network)
    return {**accuracy, **chain.finish(Path(call.folder) / LOGITS), **results}


def _of_training(call: Call, dataset: "Dataset", network: "Network") -> Results:
    """How many of some training samples are right: does the test split score like those?"""
    import numpy as np

    from raq.model.evaluation import score

    chosen = np.arange(min(TRAIN_SAMPLE, dataset.size("train")))
    found = score(network, dataset, scorer(call), chosen, split="train")
    return {"train_correct": int(found.values.sum()), "train_images": len(chosen)}


def _executed(call: Call, path: Path, process: "IsolatedProcess") -> Results:
    """Which kernels run in the artifact's process, against what it should do according to its record.

    Nothing where its runtime cannot say.
    """
    from raq.artifact.account import what_ran

    made = view_results(_Artifact, path.parent)
    known, by_choice = ([], 0.0) if made.audit is None else (made.audit.layers, evidence_of(made).by_choice)
    shapes = [entry.shape for entry in made.ledger.constants]
    layers = [KnownLayer(layer.name, layer.macs, layer.int8) for layer in known]
    found = what_ran(process, call.read(DataSettings).data.inputs, shapes, made.macs, layers)
    return {} if found is None else {**found.as_record(), "float_by_choice_share": by_choice}


def _evaluate_program(call: Call, dataset: "Dataset", chain: "Chain") -> Results:
    """Top-1 of a quantized program, and what its graph means to be int8, as no kernels are known."""
    from raq.artifact.audit import audit_graph, graph_share

    given = read_program(call, chain)
    program = given.program
    layers = audit_graph(program)
    results: Results = {
        "load_s": None,
        "resident_bytes": None,
        "graph_int8_mac_share": graph_share(program, given.macs),
        "float_layers": [{"name": x.name, "reason": x.reason} for x in layers if not x.annotated],
    }
    return {**_accuracy(call, dataset, program.module()), **chain.finish(Path(call.folder) / LOGITS), **results}


def _accuracy(call: Call, dataset: "Dataset", network: "Network") -> Results:
    """The metric on the whole test split; of top-1 the predicted classes are kept, of others the scores."""
    import numpy as np

    from raq.model.evaluation import predict_with_targets, score

    asked, folder = call.read(ArtifactSettings), Path(call.folder)
    samples, classes = dataset.size("test"), asked.data.classes
    if asked.metric.is_top1:
        found = predict_with_targets(network, dataset)
        np.save(folder / PREDICTIONS, np.stack([found.classes, found.targets]).astype(np.int32))
        correct = int((found.classes == found.targets).sum())
        kept = keep_thumbnails(call, dataset, found.margins) if asked.kind == "fp32" else {}
        return {"top1": correct / samples, "correct": correct, "test_images": samples, "classes": classes, **kept}
    scores = score(network, dataset, scorer(call), np.arange(samples))
    scores.refuse_not_finite("test")
    np.save(folder / SCORES, scores.values)
    return {
        "value": scores.value,
        "resampled": scores.resampled,
        "metric": asked.metric.model_dump(mode="json"),
        "test_images": samples,
        **({"classes": classes} if classes is not None else {}),
    }
