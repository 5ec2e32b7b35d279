"""Export to artifact on small networks: compared with counts in the graph, and with torch's own arithmetic."""

import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import EXAMPLE, TOP1, quantized, small
from torch import nn

from raq.artifact import audit, inductor
from raq.artifact.generated_code import read_package
from raq.errors import StageError, UserError
from raq.experiment.ptq import Calibration
from raq.experiment.training import Qat
from raq.model.checkpoints import LocalContext
from raq.model.training import train
from raq.model.zoo import build_model
from raq.quantize import convert, ptq, qat
from raq.quantize.export import export_program, layers

MINMAX = Calibration(observer="minmax")


@pytest.fixture(scope="module")
def program(digits):
    torch.manual_seed(0)
    return quantized(small(), digits)


@pytest.fixture(scope="module")
def package(program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "a.pt2"
    inductor.lower(program, path, {"mean": [0.5, 0.5, 0.5]})
    return path


def test_layers_and_macs_of_resnet18() -> None:
    found = [layer for _, layer in layers(export_program(build_model("resnet18-cifar", 10).eval(), EXAMPLE).graph)]
    assert Counter(layer.operator for layer in found) == {"conv": 20, "linear": 1}
    assert found[0].name == "conv1"
    assert "layer2.0.downsample.0" in {layer.name for layer in found}
    assert sum(layer.macs for layer in found) == 555_422_720  # 0.556 GMAC: counted by hand from the layers' shapes
    assert found[0].macs == 32 * 32 * 64 * 3 * 3 * 3


def test_every_layer_is_int8_and_no_float_weight_is_kept(program) -> None:
    nodes = Counter(str(node.target) for node in program.graph.nodes)
    assert nodes["quantized_decomposed.dequantize_per_channel.default"] == 3
    assert [layer.annotated for layer in audit.audit_graph(program)] == [True, True, True]
    assert sorted(t.numel() for t in program.state_dict.values() if t.dtype == torch.int8) == [320, 432, 4608]
    floats = [t for t in program.state_dict.values() if t.dtype == torch.float32]
    assert max(t.numel() for t in floats) == 32, "only biases and scales are float"


def test_the_simulation_is_what_convert_comes_to(digits) -> None:
    """Fake quantizers in place of the observers, against the converted program; and the observers see nothing of it."""
    prepared = ptq.prepare(small(), EXAMPLE, "x86", Calibration(), reduce_range=False)
    ptq.calibrate(prepared, digits, Calibration(size=64), seed=0)
    images = torch.randn(8, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in prepared.state_dict().items()}
    with ptq.simulated(prepared) as as_integers:
        expected = as_integers(100 * images), as_integers(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.state_dict().items())
    torch.testing.assert_close(convert.convert(prepared, EXAMPLE).module()(images), expected[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("observer", ["minmax", "moving-average"])
def test_observers(digits, observer: str) -> None:
    """The input's scale is what that observer's definition gives on the very images that calibrate."""
    from raq.model.augmentation import normalise
    from raq.model.dataset import calibration_indices
    from raq.model.image_batches import normalisation_tensors

    program = quantized(small(), digits, observer)
    first = next(n for n in program.graph.nodes if "quantize_per_tensor" in str(n.target))
    images = torch.from_numpy(digits.train_images[calibration_indices(380, 64, 0)])
    inputs = normalise(images, *normalisation_tensors(digits.mean, digits.std, torch.device("cpu")))
    low, high = inputs[:32].min(), inputs[:32].max()
    if observer == "minmax":
        low, high = inputs.min(), inputs.max()
    else:
        low, high = low + 0.01 * (inputs[32:].min() - low), high + 0.01 * (inputs[32:].max() - high)
    assert first.args[1] == pytest.approx(float(high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("percentile", [90.0, 99.9, 100.0])
def test_the_percentile_observer(percentile: float) -> None:
    """Against NumPy's percentiles of all that it saw, to the width of a bin."""
    from raq.quantize.observers import PercentileObserver

    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    observer = PercentileObserver(percentile, dtype=torch.uint8, quant_min=0, quant_max=255)
    observer(values)
    scale, zero_point = observer.calculate_qparams()
    low, high = (float(np.percentile(values, p)) for p in (100 - percentile, percentile))
    width = float(values.max() - values.min()) / 2048
    assert float(scale) * 255 == pytest.approx(high - low, abs=5 * width)
    assert -float(scale) * int(zero_point) == pytest.approx(low, abs=5 * width + float(scale))
    assert observer.histogram.numel() == 2048, "memory does not grow with the images"


def observed(values: torch.Tensor) -> tuple[float, float]:
    """The range that the entropy observer finds."""
    from raq.quantize.observers import EntropyObserver

    observer = EntropyObserver(dtype=torch.uint8, quant_min=0, quant_max=255)
    for part in values.chunk(2):
        observer(part)
    scale, zero_point = observer.calculate_qparams()
    assert observer.histogram.numel() == 2048
    return -float(scale * zero_point), float(scale * (255 - zero_point))


def test_the_entropy_observer_clips_what_is_rare() -> None:
    draws = torch.Generator().manual_seed(0)
    even = torch.rand(100_000, generator=draws) * 2 - 1
    assert observed(even) == (pytest.approx(-1, abs=0.02), pytest.approx(1, abs=0.02)), "nothing is rare"
    falling = -torch.rand(100_000, generator=draws).log()
    outliers = torch.cat([falling, torch.full((3,), 200.0)])[torch.randperm(100_003, generator=draws)]
    low, high = observed(outliers)
    assert low == 0
    assert 5 < high < 60, "100,000 values are below 12, three at 200"
    low, high = observed(-outliers)
    assert high == pytest.approx(0, abs=0.3)
    assert -60 < low < -5
    assert observed(torch.zeros(64)) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=0.1)), "a single value"
    with_zeros = torch.cat([outliers, torch.zeros(900_000)])[torch.randperm(1_000_003, generator=draws)]
    assert observed(with_zeros)[1] == pytest.approx(observed(outliers)[1], rel=0.1), "a ReLU's zeros say nothing"


def test_the_divergence_is_that_of_its_definition() -> None:
    """Twelve bins clipped to eight, in three levels, by hand: bin 2 takes what lies below, bin 9 what lies above."""
    from raq.quantize.observers import divergence

    counts = np.array([1, 2, 0, 4, 5, 6, 0, 8, 9, 3, 2, 1], dtype=np.float64)
    wanted = np.array([3, 4, 5, 6, 0, 8, 9, 6]) / 41  # bins 2 to 9
    #  levels: bins 2 3 4 | 5 6 7 | 8 9, each the mean of those that hold something; bin 2 itself holds nothing
    given = np.array([0, 4.5, 4.5, 7, 0, 7, 6, 6]) / 35
    given[0] = 1e-9
    seen = wanted > 0
    expected = float((wanted[seen] * np.log(wanted[seen] / given[seen])).sum())
    assert divergence(counts, 2, 10, 3) == pytest.approx(expected)
    assert divergence(np.arange(9.0), 0, 9, 9) == pytest.approx(0), "as many levels as bins, and nothing clipped"
    assert divergence(np.array([5.0, 0, 0, 5.0]), 1, 3, 2) == float("inf"), "all of it is clipped"


def test_seven_bits_without_vnni(digits) -> None:
    prepared = ptq.prepare(small(), EXAMPLE, "x86", MINMAX, reduce_range=True)
    ptq.calibrate(prepared, digits, Calibration(size=32), seed=0)
    graph = convert.convert(prepared, EXAMPLE).graph
    assert {n.args[4] for n in graph.nodes if ".quantize_per_tensor" in str(n.target)} == {127}


def test_calibration_beyond_the_data(digits) -> None:
    prepared = ptq.prepare(small(), EXAMPLE, "x86", MINMAX, reduce_range=False)
    with pytest.raises(UserError, match="381, and there are 380"):
        ptq.calibrate(prepared, digits, Calibration(size=381), seed=0)


def test_a_quantized_program_survives_its_file(program, tmp_path: Path) -> None:
    convert.save_program(program, tmp_path / "p.pt2")
    loaded = convert.load_program(tmp_path / "p.pt2")
    images = torch.randn(5, 3, 32, 32)
    assert torch.equal(loaded.module()(images), program.module()(images))
    assert convert.tensor_bytes(loaded) == convert.tensor_bytes(program)
    (tmp_path / "p.pt2").write_bytes((tmp_path / "p.pt2").read_bytes()[:-100])
    with pytest.raises(StageError, match="cannot be read"):
        convert.load_program(tmp_path / "p.pt2")


def test_the_artifact_calls_integer_kernels_only(program, package: Path) -> None:
    found = audit.audit(program, read_package(package))
    assert found.int8_mac_share == 1.0
    assert sum(found.kernels.values()) == 3
    assert all("_q" in name for name in found.kernels)
    assert [layer.kernel is not None and layer.int8 for layer in found.layers] == [True, True, True]
    assert [(entry.operator, entry.int8) for entry in found.between] == [("pool", True)]


def test_an_artifact_has_the_threads_of_who_runs_it(tmp_path: Path) -> None:
    """Compiled in a process with one thread, its own loops are parallel all the same."""

    class Pointwise(nn.Module):
        def forward(self, x):
            return (torch.sigmoid(x) * x).mean((2, 3))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inductor.lower(export_program(Pointwise().eval(), EXAMPLE), tmp_path / "a.pt2", {})
    finally:
        torch.set_num_threads(threads)
    with zipfile.ZipFile(tmp_path / "a.pt2") as package:
        code = "".join(package.read(n).decode() for n in package.namelist() if n.endswith(".cpp"))
    assert "#pragma omp parallel" in code
    assert "num_threads(" not in code


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_the_artifact_computes_the_program_at_any_batch_size(program, package: Path, batch_size: int) -> None:
    images = torch.randn(batch_size, 3, 32, 32)
    expected, given = program.module()(images), inductor.load(package)(images)
    torch.testing.assert_close(given, expected, atol=0.05, rtol=0)  # a few steps of the last layer's scale


def test_the_artifact_runs_with_torch_alone(program, package: Path, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 32, 32)
    torch.save({"x": images, "y": inductor.load(package)(images)}, tmp_path / "xy.pt")
    code = (
        "import sys, torch; d = torch.load(sys.argv[2]); net = torch._inductor.aoti_load_package(sys.argv[1]);"
        "print(torch.equal(net(d['x']), d['y']), net.get_metadata()['raq'],"
        "[m for m in ('raq', 'torchao', 'torchvision') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(package), str(tmp_path / "xy.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == f'True {{"mean": [0.5, 0.5, 0.5], "torch": "{torch.__version__.split("+")[0]}"}} []'


def test_what_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "a.pt2").write_bytes(b"no zip")
    with pytest.raises(StageError, match="not a readable package"):
        read_package(tmp_path / "a.pt2")
    with pytest.raises(StageError, match="not a readable package"):
        inductor.load(tmp_path / "a.pt2")


def test_a_model_that_cannot_be_exported_names_its_line(workplace) -> None:
    model = build_model("tiny_user:unexportable", 4, str(workplace.folder))
    with pytest.raises(UserError, match=r"cannot be exported: .*tiny_user\.py, line 4\d\)"):
        export_program(model, torch.zeros(2, 3, 16, 16))
    sys.modules.pop("tiny_user", None)


# --- quantization-aware training ---


@pytest.mark.slow
def test_qat_prepares_trains_and_converts(digits, tmp_path: Path) -> None:
    graph = qat.prepare_qat(small().train(), EXAMPLE, "x86", reduce_range=False)
    settings = Qat(epochs=2, batch_size=64, lr=0.02, augment=False)
    result = train(graph, digits, TOP1, settings, 0, LocalContext(tmp_path), qat.qat_hooks(graph, settings))
    assert result.history[1]["loss"] < result.history[0]["loss"]
    again = qat.prepare_qat(small().train(), EXAMPLE, "x86", reduce_range=False)
    again.load_state_dict(result.state)
    qat.set_graph_mode(again, training=False, norms=False)
    images = torch.randn(4, 3, 32, 32)
    again.apply(lambda m: m.disable_observer() if hasattr(m, "disable_observer") else None)
    simulated = again(images)
    program = convert.convert(again, EXAMPLE)
    assert [layer.annotated for layer in audit.audit_graph(program)] == [True, True, True]
    torch.testing.assert_close(program.module()(images), simulated, atol=0.1, rtol=0)


def test_modes_and_freezes(digits) -> None:
    graph = qat.prepare_qat(small().train(), EXAMPLE, "x86", reduce_range=False)
    hooks = qat.qat_hooks(graph, Qat(epochs=4, freeze_bn_after=1.0, freeze_observers_after=2.5))
    norms = [node for node in graph.graph.nodes if "batch_norm" in str(node.target)]
    quantizers = [m for m in graph.modules() if hasattr(m, "observer_enabled")]
    assert hooks.set_mode is not None

    def state() -> tuple[set[object], set[int]]:
        return {node.args[5] for node in norms}, {int(q.observer_enabled) for q in quantizers}

    hooks.set_mode(True)
    seen = []
    for epochs_done in (0.0, 0.99, 1.0, 2.4, 2.5):
        hooks.before_step(epochs_done)
        seen.append(state())
    assert seen == [({True}, {1}), ({True}, {1}), ({False}, {1}), ({False}, {1}), ({False}, {0})]
    hooks.set_mode(False)
    assert state() == ({False}, {0}), "evaluating must not move the ranges"


def test_evaluation_mode_of_the_graph_is_that_of_the_network() -> None:
    """With fake quantization off, the exported graph in evaluation mode is the network in evaluation mode."""
    network = small()
    network[1].running_mean.uniform_()
    graph = qat.prepare_qat(network.train(), EXAMPLE, "x86", reduce_range=False)
    graph.apply(lambda m: m.disable_fake_quant() if hasattr(m, "disable_fake_quant") else None)
    graph.apply(lambda m: m.disable_observer() if hasattr(m, "disable_observer") else None)
    qat.set_graph_mode(graph, training=False, norms=False)
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(graph(images), network.eval()(images), atol=1e-4, rtol=1e-4)


def test_every_dropout_is_off_in_evaluation() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(10))
    network(EXAMPLE)
    graph = qat.prepare_qat(network.train(), EXAMPLE, "x86", reduce_range=False)
    images = torch.randn(4, 3, 32, 32)
    qat.set_graph_mode(graph, training=True, norms=True)
    assert not torch.equal(graph(images), graph(images))
    qat.set_graph_mode(graph, training=False, norms=False)
    graph.apply(lambda m: m.disable_observer() if hasattr(m, "disable_observer") else None)
    assert torch.equal(graph(images), graph(images))


class Stochastic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).flatten(1) * torch.bernoulli(torch.full((x.shape[0], 1), 0.5))


def test_randomness_that_cannot_be_switched_off_is_refused() -> None:
    with pytest.raises(UserError, match="draws random numbers in training"):
        qat.prepare_qat(Stochastic().train(), EXAMPLE, "x86", reduce_range=False)
