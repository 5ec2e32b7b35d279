"""The loop: it learns, is reproducible, continues where it was, and is the same for two workers as for one."""

import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from networks import TOP1, Odd
from torch import nn

from raq.errors import StageError
from raq.experiment.schema import Data
from raq.experiment.training import Qat, Train
from raq.model.batch_norm import synchronise_batch_norm
from raq.model.checkpoints import LocalContext, Metrics, TrainingResult, read_result
from raq.model.dataset import load_dataset
from raq.model.evaluation import predict
from raq.model.loop import Hooks, seed_everything
from raq.model.schedules import image_side, learning_rate_factor
from raq.model.training import train


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def settings(**given: object) -> Train:
    return Train.model_validate(
        {"epochs": 4, "batch_size": 64, "lr": 0.1, "augment": False, "progressive": [], **given}
    )


def fit(digits, folder: Path, context: LocalContext | None = None, **given: object):
    seed_everything(0)
    model = network()
    return model, train(model, digits, TOP1, settings(**given), 0, context or LocalContext(folder))


def test_it_learns_and_is_reproducible(digits, tmp_path: Path) -> None:
    model, first = fit(digits, tmp_path / "a", epochs=8)
    _, second = fit(digits, tmp_path / "b", epochs=8)
    assert [row["loss"] for row in first.history] == [row["loss"] for row in second.history]
    assert first.history[-1]["loss"] < 0.5 * first.history[0]["loss"]
    model.load_state_dict(first.state)
    assert (predict(model.eval(), digits) == digits.test_labels).mean() > 0.8


def test_the_first_epochs_loss_is_torchs_own(digits, tmp_path: Path) -> None:
    """One full-batch step at no learning rate to speak of: the loss is that of plain torch on all images."""
    seed_everything(0)
    model = network()[:3].append(nn.Flatten()).append(nn.Linear(8 * 16 * 16, 10))
    images = torch.from_numpy(digits.train_images[slice(None)]).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (digits.mean, digits.std))
    expected = nn.functional.cross_entropy(model((images - mean) / std), torch.from_numpy(digits.train_labels))
    result = train(
        model, digits, TOP1, settings(epochs=1, batch_size=380, label_smoothing=0.0), 0, LocalContext(tmp_path)
    )
    assert result.history[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


class Interrupted(Exception):
    pass


class InterruptedContext(LocalContext):
    """Breaks off after the second epoch's checkpoint."""

    def save(self, metrics, write) -> None:
        super().save(metrics, write)
        if metrics["epoch"] == 1:
            raise Interrupted


def test_an_interrupted_training_ends_as_an_undisturbed_one(digits, tmp_path: Path) -> None:
    _, whole = fit(digits, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(digits, tmp_path / "part", InterruptedContext(tmp_path / "part"))
    _, continued = fit(digits, tmp_path / "part")
    assert [row["loss"] for row in continued.history] == [row["loss"] for row in whole.history]
    assert all(torch.equal(whole.state[name], tensor) for name, tensor in continued.state.items())
    assert read_result(tmp_path / "part").best_epoch == whole.best_epoch


class Drawing(nn.Module):
    """Draws with Python's random and with NumPy in training, as stochastic depth is often written."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * (0.5 + random.random()) * (0.5 + float(np.random.rand())) + torch.rand(1) * 0.1


def test_a_network_that_draws_with_python_or_numpy_is_reproduced_on_resume(digits, tmp_path: Path) -> None:
    def drawing(place: Path, context: LocalContext | None = None):
        torch.manual_seed(0)
        random.seed(time.time_ns())  # whatever was drawn before
        np.random.seed(time.time_ns() % 2**32)
        return train(nn.Sequential(Drawing(), network()), digits, TOP1, settings(), 0, context or LocalContext(place))

    whole = drawing(tmp_path / "whole")
    with pytest.raises(Interrupted):
        drawing(tmp_path / "part", InterruptedContext(tmp_path / "part"))
    continued = drawing(tmp_path / "part")
    assert [row["loss"] for row in continued.history] == [row["loss"] for row in whole.history]


def test_the_best_epoch_is_kept(digits, tmp_path: Path) -> None:
    _, result = fit(digits, tmp_path)
    scores = [row["validation_top1"] for row in result.history]
    assert scores[result.best_epoch] == max(scores)


def test_without_hold_out_the_last_epoch_is_kept(tmp_path: Path) -> None:
    data = load_dataset(Data(name="digits", train_limit=128, validation_fraction=0.0))
    _, result = fit(data, tmp_path, epochs=2)
    assert result.history[0]["validation_top1"] is None
    assert result.best_epoch == 1


def test_a_loss_that_is_not_finite_ends_the_training(digits, tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with pytest.raises(StageError, match=r"loss of epoch \d is (nan|inf)"):
        train(plain, digits, TOP1, settings(lr=100.0, momentum=0.99), 0, LocalContext(tmp_path))


def test_schedules_and_sides() -> None:
    one_cycle = [learning_rate_factor("one-cycle", 100)(step) for step in range(100)]
    assert max(one_cycle) == one_cycle[19] == 1.0
    assert one_cycle[-1] == pytest.approx(1 / 80)
    assert learning_rate_factor("constant", 100)(57) == 1.0
    assert learning_rate_factor("cosine", 100)(50) == pytest.approx(0.5)
    assert [image_side((0.5, 0.75, 1.0), epoch, 6, 32) for epoch in range(6)] == [16, 16, 24, 24, 32, 32]
    assert image_side((), 0, 6, 32) == 32


def test_weight_decay_spares_biases_and_normalisation() -> None:
    from raq.model.schedules import new_optimizer

    groups = new_optimizer(network(), settings(weight_decay=0.1)).param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert groups[1]["weight_decay"] == 0


# --- several workers, in processes of their own, over gloo ---


def _as_worker(rank: int, work: Callable[[int, int], None], meeting_place: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=2)
    work(rank, 2)
    dist.barrier()
    dist.destroy_process_group()


def two_workers(work: Callable[[int, int], None], tmp_path: Path) -> None:
    mp.start_processes(_as_worker, (work, str(tmp_path / "meeting")), nprocs=2, start_method="spawn")


def _half_batch_norm_worker(rank: int, world: int) -> None:
    """Of bfloat16, with norms in float32 and in bfloat16: as in float64, but for its rounding."""
    torch.manual_seed(0)
    images, weights = torch.randn(64, 5, 4, 4) * 2 + 1, torch.randn(64, 5, 4, 4)
    whole, expected = nn.BatchNorm2d(5).double(), images.double().requires_grad_()
    (whole(expected) * weights).sum().backward()
    for dtype, affine in ((torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)):
        mine = nn.Sequential(nn.BatchNorm2d(5, affine=affine).to(dtype))
        synchronise_batch_norm(mine, torch.device("cpu"))
        given = images[rank::world].bfloat16().requires_grad_()
        output = mine(given)
        assert output.dtype == torch.bfloat16
        (output * weights[rank::world]).sum().backward()
        torch.testing.assert_close(given.grad.double(), expected.grad[rank::world], atol=0.02, rtol=0.02)
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(mine[0].get_buffer(name).double(), whole.get_buffer(name), atol=0.01, rtol=0.01)
        if affine:
            gradient = mine[0].weight.grad.float()
            dist.all_reduce(gradient)
            torch.testing.assert_close(gradient.double(), whole.weight.grad, atol=0.3, rtol=0.02)


def _batch_norm_worker(rank: int, world: int) -> None:
    torch.manual_seed(0)
    images, weights = torch.randn(7, 5, 4, 4).double() * 2 + 1, torch.randn(7, 5, 4, 4).double()
    whole, mine = nn.BatchNorm2d(5).double(), nn.Sequential(nn.BatchNorm2d(5).double())
    nn.init.uniform_(whole.weight)
    mine[0].load_state_dict(whole.state_dict())
    synchronise_batch_norm(mine, torch.device("cpu"))
    expected, given = images.clone().requires_grad_(), images[rank::world].clone().requires_grad_()
    (whole(expected) * weights).sum().backward()
    (mine(given) * weights[rank::world]).sum().backward()
    gradient = mine[0].weight.grad
    dist.all_reduce(gradient)
    torch.testing.assert_close(given.grad, expected.grad[rank::world])
    torch.testing.assert_close(gradient, whole.weight.grad)
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(mine[0].get_buffer(name), buffer)
    torch.testing.assert_close(mine.eval()(images), whole.eval()(images))


def test_batch_norm_over_workers_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    two_workers(_batch_norm_worker, tmp_path)


def test_batch_norm_over_workers_takes_bfloat16(tmp_path: Path) -> None:
    two_workers(_half_batch_norm_worker, tmp_path)


def _observing() -> tuple[nn.Module, Hooks]:
    """A prepared graph with observers on; fake quantizers, dropout and batch statistics off, so that it stands."""
    from torchao.quantization.pt2e import disable_fake_quant, enable_observer

    from raq.quantize.qat import prepare_qat, qat_hooks, set_graph_mode

    torch.manual_seed(0)
    graph = prepare_qat(network(), torch.zeros(2, 3, 32, 32), "x86", reduce_range=False)
    hooks = qat_hooks(graph, Qat(epochs=10))
    set_graph_mode(graph, training=False, norms=False)  # without dropout
    graph.apply(disable_fake_quant)
    graph.apply(enable_observer)
    return graph, hooks


def _range_worker(rank: int, world: int) -> None:
    """After several steps, of parts that are unlike, ranges and scales are those of one process with all images."""
    images = torch.randn(6, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images[:, ::2] *= 4.0
    mine, hooks = _observing()
    whole, _ = _observing()
    for step, batch in enumerate(images):
        hooks.before_step(step / 10)
        mine(batch[rank::world])
        whole(batch)
    hooks.synchronise()
    for one, other in zip(mine.modules(), whole.modules(), strict=True):
        if hasattr(one, "activation_post_process"):
            for name in ("min_val", "max_val"):
                values = (getattr(m.activation_post_process, name) for m in (one, other))
                torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)
            if not one.is_per_channel:  # those of weights are computed when they are used
                scale, _ = other.activation_post_process.calculate_qparams()  # without fake quantizing none is kept
                torch.testing.assert_close(one.scale, scale, rtol=1e-3, atol=1e-6)
    assert sum(hasattr(m, "activation_post_process") for m in mine.modules()) >= 6


def test_quantization_ranges_are_those_of_one_process(tmp_path: Path) -> None:
    two_workers(_range_worker, tmp_path)


class _Rank(LocalContext):
    """Of two ranks; nothing is saved."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        super().__init__(folder)
        self.rank, self.world_size = rank, world

    def save(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        pass


class _EndsOrGoesOn(_Rank):
    """Saves as rank 0 does, for both ranks to go on from; ends after an epoch, if it is told to."""

    ends_after: int | None = None

    def save(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        if self.rank == 0:
            LocalContext.save(self, metrics, write)
        dist.barrier()
        if metrics["epoch"] == self.ends_after:
            raise Interrupted


def _resume_worker(rank: int, world: int) -> None:
    """Nothing tells that it was ended: with averages, rescaled weights, statistics taken anew and bfloat16; and QAT."""
    for kind in (_train_small, _learn_scales):
        with tempfile.TemporaryDirectory() as own:
            folders = [Path(own), *([None] * (world - 1))]
            dist.broadcast_object_list(folders, 0)  # of rank 0, for both
            places = [Path(str(folders[0])) / name for name in ("whole", "part")]
            whole = kind(_EndsOrGoesOn(places[0], rank, world))
            ending = _EndsOrGoesOn(places[1], rank, world)
            ending.ends_after = 1
            with pytest.raises(Interrupted):
                kind(ending)
            resumed = kind(_EndsOrGoesOn(places[1], rank, world))
            dist.barrier()
        assert [row["loss"] for row in resumed.history] == [row["loss"] for row in whole.history]
        assert all(torch.equal(whole.state[name], resumed.state[name]) for name in whole.state)


def _train_small(context: LocalContext) -> TrainingResult:
    data = load_dataset(Data(name="digits", train_limit=256, validation_fraction=0.2))
    seed_everything(0)
    asked = settings(
        epochs=3, batch_size=32, average=0.2, initialisation="rescaled", batch_norm_samples=128, precision="bfloat16",
        channels_last=True,
    )  # fmt: skip
    net = Odd()
    with torch.no_grad():
        net.head.weight.mul_(300)
    found = train(net, data, TOP1, asked, 0, context)
    assert {"last", "head"} <= set(found.history[0]["rescaled_layers"]), "too quiet, and too loud"
    return found


def test_two_workers_that_were_ended_go_on_as_if_they_had_not_been(tmp_path: Path) -> None:
    two_workers(_resume_worker, tmp_path)


def _learn_scales(context: LocalContext) -> TrainingResult:
    """As qat does by its defaults: from a calibrated graph, towards a teacher's answers, weights averaged."""
    from raq.experiment.ptq import Calibration
    from raq.model.inputs import example_of
    from raq.quantize.distillation import distillation_of
    from raq.quantize.learned_scales import let_learn, put_learned_scales
    from raq.quantize.methods import Methods, Source, quantize
    from raq.quantize.steps import scale_hooks

    data = load_dataset(Data(name="digits", train_limit=256, validation_fraction=0.2))
    seed_everything(0)
    net = network().eval()
    source = Source(net, example_of(data.inputs), data, "x86", Calibration(size=32), 0, reduce_range=False)
    graph = quantize(source, Methods()).prepared
    put_learned_scales(graph)
    let_learn(graph)
    asked = Qat(epochs=3, batch_size=32, augment=False, average=0.5)
    loss = distillation_of(net, asked, classes=True)
    assert loss is not None
    return train(graph, data, TOP1, asked, 0, context, scale_hooks(graph, asked, loss))


def _scales_worker(rank: int, world: int) -> None:
    """Two ranks end with the same weights and scales, and come to the losses of one process."""
    mine, alone = (_learn_scales(_Rank(Path("nowhere"), *given)) for given in ((rank, world), (0, 1)))
    for one, other in zip(mine.history, alone.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    for name, tensor in mine.state.items():
        first = tensor.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, tensor), name
    assert any(name.endswith("log_change") and bool(tensor.any()) for name, tensor in mine.state.items())


def test_a_training_from_ptq_that_was_interrupted_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    whole = _learn_scales(LocalContext(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        _learn_scales(InterruptedContext(tmp_path / "part"))
    continued = _learn_scales(LocalContext(tmp_path / "part"))
    assert [row["loss"] for row in continued.history] == [row["loss"] for row in whole.history]
    assert all(torch.equal(whole.state[name], tensor) for name, tensor in continued.state.items())
    assert any(name.endswith("log_change") and bool(tensor.any()) for name, tensor in whole.state.items())


def test_scales_learn_alike_on_two_workers(tmp_path: Path) -> None:
    two_workers(_scales_worker, tmp_path)


@pytest.mark.gpu
def test_training_on_a_gpu(digits, tmp_path: Path) -> None:
    _, result = fit(digits, tmp_path, LocalContext(tmp_path, "cuda"), epochs=8)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
