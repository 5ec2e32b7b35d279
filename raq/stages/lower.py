"""The stage that compiles a candidate's program into an artifact, and audits what came out.

Plain torch, never ray; torch is imported inside the functions.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.artifact.metadata import Metadata
from raq.artifact.runtimes import RUNTIMES, Runtime, in_parts
from raq.environment import available_cpus
from raq.lazy import resolve
from raq.stages.call import LOGITS, Call, Progress, Results, refuse_other_machine
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network
from raq.stages.programs import Program, read_program
from raq.store.files import file_digest
from raq.store.settings import LowerSettings

if TYPE_CHECKING:
    from raq.artifact.audit import Audit
    from raq.artifact.generated_code import GeneratedCode
    from raq.model.dataset import Dataset
    from raq.model.parity import Chain


def lower_stage(call: Call, progress: Progress) -> Results:
    """Compile the program for the device, and audit what came out; what is required of it is checked by the driver."""
    import torch

    settings = call.read(LowerSettings)
    runtime = RUNTIMES[settings.runtime]
    path = Path(call.folder) / runtime.file_name
    if runtime.is_native:
        refuse_other_machine(settings.machine)
    dataset = read_dataset(call)
    chain = parity_chain(call, dataset)
    given = _program(call, chain)
    progress({"text": f"compiling for {settings.device}"})
    most = settings.max_batch if runtime.has_max_batch else None
    metadata = _metadata(settings, given)
    if settings.quantizer is not None:
        _quantize(settings, dataset, given, path, metadata)
    else:
        # the compiler plans for the threads that there are, and this stage may have half of them
        torch.set_num_threads(settings.threads or len(available_cpus()))
        resolve(runtime.lower)(given.program, path, metadata, settings.device, most, settings.min_batch)
        torch.set_num_threads(call.cpus)
    lowered = resolve(runtime.load)(path, call.cpus)
    chain.step("lowered", lowered if most is None else in_parts(lowered, most), settings.device)
    started = time.perf_counter()
    results = _audited(settings, given, path, runtime)
    chain.seconds += time.perf_counter() - started
    return results | chain.finish(Path(call.folder) / LOGITS)


def _program(call: Call, chain: "Chain") -> Program:
    """The quantized program that a stage before has left, or the FP32 network exported; the chain goes on from it."""
    from raq.quantize.arithmetic import network_macs
    from raq.quantize.export import export_for_lowering, export_program
    from raq.quantize.folding import folded_graph

    if "program" in call.inputs:
        return read_program(call, chain)
    network, example = read_trained_network(call), example_input(call)
    chain.step("fp32", network)
    folds = call.read(LowerSettings).quantizer is not None  # other tools expect it, as their guides say
    program = (
        export_program(folded_graph(network, example), example) if folds else export_for_lowering(network, example)
    )
    return Program(program, network_macs(network, example), [])


def _quantize(
    settings: LowerSettings, dataset: "Dataset", given: Program, path: Path, metadata: dict[str, Any]
) -> None:
    """Write the artifact of a candidate that another tool quantizes."""
    from raq.artifact import onnx
    from raq.quantize.calibration import CalibrationBatches
    from raq.quantize.others import quantize_by

    assert settings.quantizer is not None
    assert settings.calibration is not None
    tool, batches = settings.quantizer, CalibrationBatches(dataset, settings.calibration, settings.seed)

    def quantize(model: Any) -> None:
        quantize_by(tool, model, batches, reduce_range=settings.reduce_range)

    onnx.write(given.program, path, settings.runtime, metadata, quantize)


def _metadata(settings: LowerSettings, given: Program) -> dict[str, Any]:
    """What travels in the artifact, so that it can be used without a record."""
    data = settings.data
    return {
        "candidate": settings.candidate,
        "kind": settings.kind,
        "model": settings.model,
        **({"input": list(data.inputs[0].shape)} if data.mean is not None else {}),
        "inputs": [one.plain() for one in data.inputs],
        "mean": None if data.mean is None else list(data.mean),
        "std": None if data.std is None else list(data.std),
        "classes": data.classes,
        "macs": given.macs.total,
        "float_by_choice": given.float_by_choice,
        **({"quantizer": settings.quantizer} if settings.quantizer is not None else {}),
        **({"batch_sizes": settings.batch_sizes} if settings.batch_sizes else {}),
        **({"threads": settings.threads} if settings.threads is not None else {}),
    }


def _audited(settings: LowerSettings, given: Program, path: Path, runtime: Runtime) -> Results:
    """What the artifact is, read from the file: sizes, digest, the share of its arithmetic that is int8."""
    from raq.artifact.audit import audit, float_weight_share
    from raq.artifact.check import float_weights_of_code, share_of_code
    from raq.artifact.sizes import as_in_torch, float_copies, ledger
    from raq.quantize.convert import tensor_bytes

    code: GeneratedCode = resolve(runtime.read)(path)
    if runtime.name_scales is not None:
        code = resolve(runtime.name_scales)(code, given.program)
    is_float = settings.kind in ("fp32", "half")
    results: Results = {
        "runtime": runtime.name,
        "target": settings.device,
        "size_bytes": path.stat().st_size,
        "weight_bytes": tensor_bytes(given.program),
        "sha256": file_digest(path),
        "ledger": ledger(code).as_record(),
        "float_copies": [] if is_float or settings.quantizer else float_copies(given.program),
        "float_weight_share": float_weight_share(given.program, given.float_by_choice),
        "macs": given.macs.total,
    }
    if is_float:
        return results | {"int8_mac_share": 0.0}
    if settings.quantizer is not None:  # there is no program of ours to hold it against
        weights = {"weight_bytes": as_in_torch(code), "float_weight_share": float_weights_of_code(code)}
        return results | weights | {"int8_mac_share": share_of_code(code, Metadata(code.metadata))}
    if settings.device == "cpu" or runtime.reports == "itself":  # then the file says what is to be int8
        found: Audit | None = audit(given.program, code, given.macs)
    else:
        from raq.artifact.on_gpu import audit_on_gpu  # needs Triton

        found = audit_on_gpu(given.program, given.macs)
    if found is None:  # Inductor computes in float
        return results | {"int8_mac_share": 0.0, "note": "arithmetic between quantize and dequantize is float"}
    if settings.kind == "weight_only":
        read = {"int8_mac_share": 0.0, "int8_weight_mac_share": found.int8_weight_mac_share}
        return results | read | {"audit": found.as_record()}
    shares = {"int8_mac_share": found.int8_mac_share, "float_by_choice": given.float_by_choice}
    return results | shares | {"audit": found.as_record()}
