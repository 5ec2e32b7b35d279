"""Networks of libraries, by name: torchvision's, timm's, and what transformers has trained.

Must not import torch or ray at its top.
"""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.errors import UserError, first_line
from raq.lazy import require_library

if TYPE_CHECKING:
    from torch import nn


def torchvision_model(name: str, classes: int | None) -> "nn.Module":
    """One of torchvision's networks for classification or segmentation (whose output is `out`), untrained."""
    import torchvision

    models = torchvision.models
    names = [*models.list_models(module=models), *models.list_models(module=models.segmentation)]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        raise UserError(
            f"model.name: torchvision has no network {name!r} for classification or segmentation",
            f"nearest: {', '.join(near)}" if near else "see torchvision's lists; others by module:function",
        )
    more: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        more = {"aux_logits": False, "init_weights": True}
    if name in models.list_models(module=models.segmentation):
        more = {"weights_backbone": None}  # which would be downloaded
    model: nn.Module = models.get_model(name, weights=None, num_classes=classes, **more)
    return model


def timm_model(name: str, classes: int | None) -> "nn.Module":
    """One of timm's classifiers, untrained; UserError if timm is not installed or has none of that name."""
    require_library("timm", "timm")
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise UserError(
            f"model.name: timm has no model {name!r}",
            f"nearest: {', '.join(near)}" if near else "see timm.list_models()",
        )
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes, exportable=True)
    return model


def transformers_model(name: str, classes: int | None) -> "nn.Module":
    """A network of transformers with its trained weights in float32, of the class that its configuration names.

    name: a folder with config.json and model.safetensors, or a name that is in the Hugging Face cache; nothing is
    downloaded, and code that comes with a model is not run. classes: not looked at; a classifier has those that it was
    trained with. Raises UserError, also for weights that lack a part of the network.
    """
    require_library("transformers", "transformers")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder = transformers_folder(name)
    never: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        configuration = transformers.AutoConfig.from_pretrained(folder, **never)
        known = [getattr(transformers, one, None) for one in configuration.architectures or ()]
        kind = next(filter(None, known), transformers.AutoModel)
        model, found = kind.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **never
        )
    except Exception as error:  # it raises many kinds
        raise UserError(
            f"model.name: transformers cannot make {name}: {type(error).__name__}: {first_line(error)}",
            "a model is a folder with config.json and model.safetensors, as save_pretrained writes it",
        ) from error
    lacking = sorted({str(key) for part in ("missing_keys", "mismatched_keys") for key in found.get(part) or ()})
    if lacking:
        raise UserError(
            f"model.name: the weights of {name} lack {lacking[0]}, or have another size of it: {kind.__name__} has "
            f"random numbers there ({len(lacking)} such)",
            "give a folder whose config.json and weights belong together",
        )
    network: nn.Module = model
    return network


def transformers_folder(name: str) -> Path:
    """Where a model of transformers lies: a folder, or the cache's of that name. UserError if it is in neither."""
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder.resolve()
    require_library("huggingface_hub", "transformers")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception as error:  # names that cannot be, and what is not there
        raise UserError(
            f"model.name: transformers:{name} is neither a folder with config.json nor in the Hugging Face cache",
            f"give a folder, or get it first: hf download {name}",
        ) from error


def transformers_files(name: str) -> list[Path]:
    """The files that make a model of transformers what it is: its configuration, its weights and their index."""
    folder = transformers_folder(name)
    weights = (".safetensors", ".safetensors.index.json")
    return sorted(file for file in folder.iterdir() if file.name == "config.json" or file.name.endswith(weights))


LIBRARIES: "dict[str, Callable[[str, int | None], nn.Module]]" = {
    "torchvision": torchvision_model, "timm": timm_model, "transformers": transformers_model,
}  # fmt: skip
