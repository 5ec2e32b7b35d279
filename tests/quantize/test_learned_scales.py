"""Training from a calibrated graph: it begins with what PTQ computes, and its scales learn by LSQ's gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import EXAMPLE, TOP1, small
from torch import Tensor, nn
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.observer import MinMaxObserver

from raq.errors import StageError
from raq.experiment.ptq import Calibration
from raq.experiment.training import Qat, Train
from raq.model.checkpoints import LocalContext
from raq.model.evaluation import logits
from raq.model.inputs import as_example
from raq.model.loop import seed_everything
from raq.model.training import model_state, train
from raq.quantize.bias import ADDED
from raq.quantize.calibrated import load_calibrated, save_calibrated
from raq.quantize.convert import convert
from raq.quantize.equalization import MULTIPLIED
from raq.quantize.learned_scales import (
    LearnedScale,
    in_float,
    learned_scales,
    let_learn,
    put_learned_scales,
    put_observers,
)
from raq.quantize.methods import Made, Methods, Source, quantize
from raq.quantize.ptq import FixedFakeQuantize, simulated
from raq.quantize.steps import optimizer_of, scale_hooks, units_of

EVERY = Methods("all", True, 3)


def network() -> nn.Module:
    """Channels of very different ranges behind a sigmoid, which takes no factors; a layer without a bias."""
    seed_everything(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    with torch.no_grad():
        net[1].weight.copy_(torch.logspace(-2, 1, 16))
        net[3].weight.div_(torch.logspace(-2, 1, 16)[:, None, None])
    return net.eval()


def source(net: nn.Module, digits) -> Source:
    return Source(net, as_example(EXAMPLE), digits, "x86", Calibration(size=64), 0, reduce_range=False)


def kept(net: nn.Module, digits, path: Path, methods: Methods = EVERY) -> Made:
    made = quantize(source(net, digits), methods)
    save_calibrated(made, source(net, digits), path)
    return made


def batch(digits) -> Tensor:
    (inputs, _), *_ = digits.batches("test", [np.arange(64)], torch.device("cpu"))
    return inputs[0]


def test_training_begins_with_what_ptq_computes_and_ends_in_the_program_it_learned(digits, tmp_path: Path) -> None:
    net, images = network(), batch(digits)
    made = kept(net, digits, tmp_path / "a.pt")
    assert made.prepared.meta[MULTIPLIED], "a multiplication is a part of the structure that is made again"
    assert made.prepared.meta[ADDED], "and so is a bias that was not there"
    with simulated(made.prepared) as as_integers, torch.no_grad():
        expected = as_integers(images)
    found = load_calibrated(net, as_example(EXAMPLE), tmp_path / "a.pt")
    put_learned_scales(found.prepared)
    with in_float(found.prepared) as as_float, torch.no_grad():
        torch.testing.assert_close(as_float(images), net(images), rtol=1e-4, atol=1e-5)
    found.correct()
    let_learn(found.prepared)
    assert torch.equal(found.prepared(images), expected)
    settings = Qat(epochs=1, batch_size=64, distillation=0.0)
    hooks = scale_hooks(found.prepared, settings)
    result = train(found.prepared, digits, TOP1, settings, 0, LocalContext(tmp_path / "b"), hooks)
    found.prepared.load_state_dict(result.state)
    with torch.no_grad():
        trained = found.prepared(images)
    assert not torch.equal(trained, expected), "something was learned"
    put_observers(found.prepared)
    program = convert(found.prepared, as_example(EXAMPLE)).module()
    assert torch.equal(program(images), trained)


def test_it_learns_scales_that_are_too_large(digits, tmp_path: Path) -> None:
    """With nothing but scales learning, outputs come nearer to FP32's."""
    torch.manual_seed(0)
    net = small()
    kept(net, digits, tmp_path / "a.pt", Methods())
    found = load_calibrated(net, as_example(EXAMPLE), tmp_path / "a.pt")
    put_learned_scales(found.prepared)
    found.correct()
    let_learn(found.prepared, {name for name, _ in net.named_parameters()})
    with torch.no_grad():
        for _, learned in learned_scales(found.prepared):
            learned.log_change.add_(0.7)
    every = np.arange(digits.size("test"))
    wanted, before = logits(net, digits, every), logits(found.prepared, digits, every)
    power = float(wanted.var())
    settings = Qat(epochs=4, batch_size=32, scale_lr=0.05)
    hooks = scale_hooks(
        found.prepared, settings, lambda inputs, outputs, by_sample: (outputs - net(*inputs)).square().mean(1) / power
    )
    result = train(found.prepared, digits, TOP1, settings, 0, LocalContext(tmp_path / "b"), hooks)
    found.prepared.load_state_dict(result.state)
    after = logits(found.prepared, digits, every)
    assert ((after - wanted) ** 2).mean() < 0.5 * ((before - wanted) ** 2).mean()


@pytest.mark.parametrize("per_channel", [False, True])
def test_values_are_those_of_fake_quantization_and_the_gradient_of_the_scale_is_lsqs(per_channel: bool) -> None:
    torch.manual_seed(0)
    values = torch.randn(6, 5, 3) * torch.tensor([0.1, 1, 3, 5, 20])[:, None]
    observer = (
        PerChannelMinMaxObserver(ch_axis=0, dtype=torch.int8, qscheme=torch.per_channel_symmetric, quant_min=-127,
                                 quant_max=127)
        if per_channel
        else MinMaxObserver(dtype=torch.uint8, quant_min=0, quant_max=255)
    )  # fmt: skip
    observer(values * 0.5)  # some lie beyond the range
    fixed, learned = FixedFakeQuantize(observer), LearnedScale(observer)
    assert torch.equal(learned(values), fixed(values))
    upstream = torch.randn_like(values)
    (learned(values) * upstream).sum().backward()
    shape = [-1, 1, 1] if per_channel else [1, 1, 1]
    scale, zero = learned.scale.detach().reshape(shape), learned.zero_point.reshape(shape)
    place = values / scale
    rounded = (place + zero).round()
    inside = rounded.clamp(learned.low, learned.high) == rounded
    own = torch.where(inside, (place + zero).round() - zero - place, rounded.clamp(learned.low, learned.high) - zero)
    dims = (1, 2) if per_channel else (0, 1, 2)
    expected = (own * upstream).sum(dims) * scale.flatten()
    assert learned.log_change.grad is not None
    torch.testing.assert_close(learned.log_change.grad, expected.reshape(learned.scale.shape), rtol=1e-3, atol=1e-4)


def test_all_that_is_read_learns_but_what_the_network_has_frozen(digits, tmp_path: Path) -> None:
    net = network()
    kept(net, digits, tmp_path / "a.pt")
    found = load_calibrated(net, as_example(EXAMPLE), tmp_path / "a.pt")
    put_learned_scales(found.prepared)
    found.correct()
    let_learn(found.prepared, {"7.weight"})
    found.prepared(batch(digits)).square().mean().backward()
    learning = {name for name, one in found.prepared.named_parameters() if one.requires_grad}
    assert "7.weight" not in learning
    assert {"0.weight", "3.weight", "7.bias"} <= learning
    assert all(learned.log_change.requires_grad for _, learned in learned_scales(found.prepared))
    assert all(one.grad is not None for one in found.prepared.parameters() if one.requires_grad)
    let_learn(found.prepared, {"0.weight", "3.weight"}, own=net.state_dict().keys())
    learning = {name for name, one in found.prepared.named_parameters() if one.requires_grad}
    added = {name for name in learning if not name.endswith("log_change")} - {"7.weight", "7.bias"}
    assert not added, "biases that were folded or corrected are held with their weights"


def test_a_training_that_makes_it_worse_ends_with_its_start(digits, tmp_path: Path) -> None:
    """As PTQ left it, where no epoch was as good on the validation samples."""
    torch.manual_seed(0)
    net = small()
    result = train(net, digits, TOP1, Train(epochs=6, lr=0.05, augment=False), 0, LocalContext(tmp_path / "a"))
    net.load_state_dict(result.state)
    graph = quantize(source(net.eval(), digits), Methods()).prepared
    put_learned_scales(graph)
    let_learn(graph)
    before = model_state(graph)
    settings = Qat(epochs=1, batch_size=64, weight_lr=8.0, schedule="constant", augment=False, average=0.0)
    result = train(graph, digits, TOP1, settings, 0, LocalContext(tmp_path / "b"), scale_hooks(graph, settings))
    assert result.best_epoch == -1
    assert all(torch.equal(before[name], tensor) for name, tensor in result.state.items())


class Blur(nn.Module):
    """A fixed filter between two layers; a bias and a gain that begin with 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 3)
        self.shift = nn.Parameter(torch.zeros(8, 1, 1))
        self.register_buffer("filter", torch.full((8, 1, 3, 3), 1 / 9))

    def forward(self, x: Tensor) -> Tensor:
        blurred = nn.functional.conv2d(self.first(x), self.filter, padding=1, groups=8)
        return self.last(blurred + self.shift).mean((2, 3))


def test_fixed_filters_stay_and_what_is_0_learns(digits) -> None:
    torch.manual_seed(0)
    net = Blur().eval()
    graph = quantize(source(net, digits), Methods()).prepared
    put_learned_scales(graph)
    let_learn(graph, {"filter"})
    optimizer = optimizer_of(graph, Qat())
    kernel, shift = graph.get_buffer("filter").clone(), graph.get_parameter("shift").detach().clone()
    graph(batch(digits)).square().mean().backward()
    optimizer.step()
    assert torch.equal(graph.get_buffer("filter"), kernel)
    assert not torch.equal(graph.get_parameter("shift"), shift)


def test_what_was_kept_of_another_network_is_refused(digits, tmp_path: Path) -> None:
    kept(network(), digits, tmp_path / "a.pt")
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 10)).eval()
    with pytest.raises(StageError, match="not of this network"):
        load_calibrated(other, as_example(EXAMPLE), tmp_path / "a.pt")


def test_the_first_step_moves_every_weight_by_the_same_share_of_its_integer(digits) -> None:
    """Adam's first step is the sign of the gradient: whatever a channel's range is, its weights move alike in it."""
    graph = quantize(source(network(), digits), Methods()).prepared
    put_learned_scales(graph)
    let_learn(graph)
    settings = Qat(weight_lr=0.25, scale_lr=0.125)
    units, optimizer = units_of(graph), optimizer_of(graph, settings)
    scales = [learned for _, learned in learned_scales(graph)]
    before = {one: one.detach().clone() for one in units}
    graph(batch(digits)).square().mean().backward()
    optimizer.step()
    weight = graph.get_parameter("0.weight")
    assert units[weight].shape == (16, 1, 1, 1)
    assert float(units[weight].max() / units[weight].min()) > 50, "its channels differ by far"
    for one, unit in units.items():
        moved = ((one.detach() - before[one]) / unit).abs()
        far = (one.grad.abs() > 1e-5).expand_as(moved)  # beside Adam's epsilon
        torch.testing.assert_close(moved[far], torch.full_like(moved[far], 0.25), rtol=1e-2, atol=0)
    largest = max(float(learned.log_change.detach().abs().max()) for learned in scales)
    assert largest == pytest.approx(0.125, rel=1e-2)
