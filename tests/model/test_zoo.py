"""Networks by name, and weights that fit or are refused."""

import pickle
import sys
from pathlib import Path

import pytest
import torch

from raq.errors import UserError
from raq.model.zoo import build_model, check_output, load_state, load_weights, refuse_not_finite


@pytest.mark.parametrize(("name", "parameters"), [("resnet18-cifar", 11_173_962), ("resnet20-cifar", 272_474)])
def test_parameters(name: str, parameters: int) -> None:
    model = build_model(name, 10)
    # resnet20 with projections: He et al.'s 269,722 with identity shortcuts, and 2,752 of the two projections
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "squeezenet1_1"])
def test_torchvision_classifiers_have_the_number_of_classes(name: str) -> None:
    model = build_model(f"torchvision:{name}", 7).eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "no network 'resnet18'"),
        ("torchvision:resnet19", "torchvision has no network 'resnet19'"),
        ("tiny_user:not_a_model", "returned a int"),
        ("tiny_user:data", "returned a tuple"),
    ],
)
def test_no_such_network(workplace, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_model(name, 4, str(workplace.folder))
    assert caught.value.hint
    sys.modules.pop("tiny_user", None)


def test_weights_round_trip(tmp_path: Path) -> None:
    source, target = build_model("resnet20-cifar", 10), build_model("resnet20-cifar", 10)
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in source.state_dict().items()}}
    torch.save(wrapped, tmp_path / "w.pt")
    load_state(target, load_weights(tmp_path / "w.pt"), "resnet20-cifar", "w.pt")
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("code of a weights file was run",))


def test_weights_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    for content in (b"", b"PK\x03\x04 cut off", pickle.dumps(Harmful()), b"\x00" * 1000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"w\.pt is not a state dict"):
            load_weights(path)
    torch.save(Harmful(), path)
    with pytest.raises(UserError, match=r"w\.pt is not a state dict"):
        load_weights(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match="holds no state dict"):
        load_weights(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(tmp_path / "none.pt")


def test_weights_of_another_network() -> None:
    model = build_model("resnet20-cifar", 10)
    with pytest.raises(UserError, match=r"fc\.weight is \[3, 64\], the network's \[10, 64\]"):
        load_state(model, build_model("resnet20-cifar", 3).state_dict(), "resnet20-cifar", "w.pt")
    with pytest.raises(UserError, match="lacks"):
        load_state(model, build_model("resnet18-cifar", 10).state_dict(), "resnet20-cifar", "w.pt")
    broken = dict(model.state_dict())
    broken["fc.bias"] = torch.full((10,), float("nan"))
    with pytest.raises(UserError, match="NaN"):
        load_state(model, broken, "resnet20-cifar", "w.pt")


def test_outputs_that_are_no_logits() -> None:
    images = torch.zeros(2, 3, 8, 8)
    check_output(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)), images, 4, "good")
    with pytest.raises(UserError, match=r"gives \[2, 4, 1, 1\] for 2 samples of 4 classes"):
        check_output(torch.nn.Conv2d(3, 4, 8), images, 4, "x")
    with pytest.raises(UserError, match=r"does not take samples of \[3, 8, 8\]"):
        check_output(torch.nn.Linear(5, 4), images, 4, "x")


def test_a_network_whose_state_dict_has_a_version(tmp_path: Path) -> None:
    """torchvision's mnasnet refuses a state dict without its module versions."""
    model = build_model("torchvision:mnasnet0_5", 10)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    load_state(model, load_weights(tmp_path / "w.pt"), "mnasnet0_5", "w.pt")


def test_weights_that_are_no_numbers_are_told_and_infinite_masks_are_not() -> None:
    network = torch.nn.BatchNorm1d(3)
    network.register_buffer("mask", torch.full((2, 2), -torch.inf))
    refuse_not_finite(network, "it")
    network.running_var[1] = torch.nan  # type: ignore[index]
    with pytest.raises(UserError, match="it has NaN or infinite values in running_var"):
        refuse_not_finite(network, "it")
    network.running_var.fill_(1)  # type: ignore[union-attr]
    network.weight.data[0] = torch.inf
    with pytest.raises(UserError, match="infinite values in weight"):
        refuse_not_finite(network, "it")
