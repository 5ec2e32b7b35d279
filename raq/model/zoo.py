"""Networks by name, and weights from files."""

import difflib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from raq.errors import UserError, first_line
from raq.experiment.inputs import Inputs, names_of
from raq.lazy import require_library
from raq.model.adapter import adapt, outputs_of
from raq.model.inputs import Example, as_example
from raq.model.library_models import LIBRARIES
from raq.model.user_code import import_function, on_path

StateDict = Mapping[str, Tensor]


def build_model(name: str, classes: int | None, working_directory: str | None = None) -> nn.Module:
    """The network called `name`, with `classes` outputs where there are classes.

    name: resnet18-cifar, resnet20-cifar, torchvision:<name>, timm:<name>, all untrained; transformers:<folder or name>,
    trained; or module:function, called with num_classes=<int> where there are classes and it has such a parameter.
    Raises UserError if there is no such network or the user's function does not return one.
    """
    prefix, _, rest = name.partition(":")
    if classes is None and (name in BUILDERS or prefix in ("torchvision", "timm")):
        raise UserError(
            f"model {name} is a classifier, and the data say not how many classes there are",
            "give raq.Data(classes=...), or a model of your own (module:function)",
        )
    if name in BUILDERS:
        return BUILDERS[name](classes or 0)
    if prefix in LIBRARIES:
        return LIBRARIES[prefix](rest, classes)
    if not rest:
        near = difflib.get_close_matches(name, BUILDERS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        allowed = ", ".join([*BUILDERS, *(f"{library}:<name>" for library in LIBRARIES), "module:function"])
        raise UserError(
            f"model.name: there is no network {name!r}",
            f"{hint}allowed: {allowed}",
        )
    function = import_function(name, working_directory)
    arguments = {} if classes is None or not _takes_classes(function) else {"num_classes": classes}
    try:
        with on_path(working_directory):
            model = function(**arguments)
    except (Exception, SystemExit) as error:
        called = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise UserError(
            f"model {name}: {type(error).__name__}: {error}", f"it is called as {name.partition(':')[2]}({called})"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name} returned a {type(model).__name__}, not an nn.Module", "return the network")
    return model


def _takes_classes(function: Callable[..., object]) -> bool:
    """Whether a function can be called with num_classes; True where its signature is not known."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return True
    return "num_classes" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def build_network(
    name: str, classes: int | None, inputs: Inputs, output: str | int | None, working_directory: str | None = None
) -> nn.Module:
    """`build_model`, as a network that takes these inputs in order and gives the one output that is judged."""
    return adapt(build_model(name, classes, working_directory), names_of(inputs), output)


def check_output(model: nn.Module, example: Tensor | Example, classes: int | None, name: str) -> None:
    """Raise UserError unless the network maps the example [n, ...] to one tensor of n samples.

    classes: where top-1 counts, that tensor must be logits [n, classes]. The network's mode is restored.
    """
    given, was = as_example(example), model.training
    shapes = " and ".join(str(list(one.shape[1:])) for one in given.inputs)
    try:
        with torch.no_grad():
            output = model.eval()(*given.inputs)
    except Exception as error:  # the user's own forward may raise anything
        raise UserError(
            f"model {name} does not take samples of {shapes}: {type(error).__name__}: {first_line(error)}",
            "see which inputs the data give, and of what size; choose another model, or other data; "
            "model.output names one of several outputs",
        ) from error
    finally:
        model.train(was)
    several = outputs_of(output)
    if several:
        tensors = [str(key) for key, value in several.items() if isinstance(value, Tensor)]
        raise UserError(
            f"model {name} gives several outputs ({type(output).__name__})",
            f"set model.output to the one that is judged: {', '.join(tensors) or 'none is a tensor'}",
        )
    fits = isinstance(output, Tensor) and output.ndim > 0 and len(output) == len(given)
    if fits and (classes is None or output.shape == (len(given), classes)):
        return
    found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    of_classes = f" of {classes} classes" if classes is not None else ""
    wanted = f"logits [n, num_classes], here [{len(given)}, {classes}]" if classes is not None else "a tensor [n, ...]"
    raise UserError(f"model {name} gives {found} for {len(given)} samples{of_classes}", f"its output must be {wanted}")


def load_weights(path: Path) -> StateDict:
    """A state dict from a file, read without unpickling code; {"state_dict": ...} and {"model": ...} are opened.

    Raises UserError if the file cannot be read or holds something else.
    """
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"model.weights: {path} cannot be read: {error.strerror}", "give the path of a state dict"
        ) from None
    except Exception as error:  # damaged files raise many kinds
        harmful = "weights_only" in str(error) or "Weights only" in str(error)
        reason = "it holds more than tensors" if harmful else type(error).__name__
        raise UserError(
            f"model.weights: {path} is not a state dict that loads with weights_only: {reason}",
            "save it with torch.save(model.state_dict(), path)",
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(
            f"model.weights: {path} holds no state dict (names and tensors)",
            "save it with torch.save(model.state_dict(), path)",
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def _load_safetensors(path: Path) -> StateDict:
    require_library("safetensors", "safetensors")
    from safetensors.torch import load_file

    try:
        return {name.removeprefix("module."): tensor for name, tensor in load_file(path).items()}
    except Exception as error:  # a damaged file raises an error of its own kind
        raise UserError(
            f"model.weights: {path} is no readable safetensors file: {first_line(error)}", "save it again"
        ) from None


def load_state(model: nn.Module, weights: StateDict, name: str, source: str) -> None:
    """Load a state dict into a network, in place; UserError names the first tensor that does not fit."""
    expected = model.state_dict()
    missing, unexpected = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unexpected:
        what = f"lacks {missing[0]!r}" if missing else f"has {unexpected[0]!r}, which the network has not"
        raise UserError(
            f"model.weights: {source} does not fit {name}: it {what} "
            f"({len(missing)} missing, {len(unexpected)} unexpected)",
            "give weights of this network",
        )
    for key, tensor in expected.items():
        if tensor.shape != weights[key].shape:
            raise UserError(
                f"model.weights: {source} does not fit {name}: {key} is {list(weights[key].shape)}, "
                f"the network's {list(tensor.shape)}",
                "give weights of this network and number of classes",
            )
        if weights[key].layout != torch.strided or weights[key].is_quantized or weights[key].is_meta:
            raise UserError(f"model.weights: {source}: {key} is not a dense tensor", "save the FP32 state dict")
    state = OrderedDict(weights)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]  # load_state_dict reads each module's version from _metadata
    model.load_state_dict(state)
    refuse_not_finite(model, source)


def refuse_not_finite(model: nn.Module, source: str) -> None:
    """UserError for a network with weights that are no numbers; infinite buffers are masks, and allowed."""
    tensors = {**{key: torch.isfinite(t) for key, t in model.named_parameters()},
               **{key: ~torch.isnan(t) for key, t in model.named_buffers()}}  # fmt: skip
    for key, good in tensors.items():
        if not bool(good.all()):
            raise UserError(
                f"{source} has NaN or infinite values in {key}",
                "no training or quantization can mend them: give weights that are finite",
            )


def resnet18_cifar(classes: int) -> nn.Module:
    """torchvision's ResNet-18 with a 3x3 stride-1 stem and no max-pool, for 32x32 images."""
    import torchvision

    model: nn.Module = torchvision.models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def resnet20_cifar(classes: int) -> nn.Module:
    """The 20-layer residual network for CIFAR-10 (He et al. 2016, section 4.2), with projection shortcuts.

    0.27 million parameters, 41 million multiply-accumulates at 32x32.
    """
    from torchvision.models.resnet import BasicBlock

    def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        blocks = [BasicBlock(inputs, outputs, stride, shortcut), *(BasicBlock(outputs, outputs) for _ in range(2))]
        return nn.Sequential(*blocks)

    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, 1, 1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(inplace=True),
            layer1=stage(16, 16, 1),
            layer2=stage(16, 32, 2),
            layer3=stage(32, 64, 2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, classes),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


BUILDERS = {"resnet18-cifar": resnet18_cifar, "resnet20-cifar": resnet20_cifar}
