"""The per-user cache of decoded images: arrays that are memory-mapped ever after.

The folder `RAQ_CACHE` (default: ~/.cache/raq) holds a folder for each source, named after a hash of the source's files,
with the arrays and their digest; when the source changes, another folder is written. Must not import torch or ray.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raq.environment import cache_folder
from raq.errors import RaqError, UserError

Array = npt.NDArray[Any]
SPLITS = ("train_images", "train_labels", "test_images", "test_labels")
MAX_CHANNELS = 64
FORM = "images are uint8 [N, C, H, W], labels whole numbers [N] from 0; for other data return a raq.Data"
MAX_CLASSES = 100_000  # more are a mistake: labels that are something else
DECODER = 1  # counts up when decoding changes: arrays of older decoders are not read again


def cached(
    name: str, identity: Any, decode: Callable[[], dict[str, Array]], source: str
) -> tuple[dict[str, Array], str, str]:
    """The arrays of a source, their digest, and the source: decoded by the first call, memory-mapped by later ones.

    identity: plain values that change when the source does; source: its name, for messages. The folder is renamed into
    place: if two processes decode at once, the second keeps what the first has stored.
    """
    key = hashlib.sha256(
        json.dumps([DECODER, metadata.version("pillow"), name, identity], sort_keys=True).encode()
    ).hexdigest()[:24]
    folder = cache_folder() / "arrays" / f"{name.replace(':', '-')}-{key}"
    if not (folder / "meta.json").is_file():
        arrays = checked(decode(), source)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
                work = Path(scratch) / "arrays"
                work.mkdir()
                for split, array in arrays.items():
                    np.save(work / f"{split}.npy", array)
                meta = {"digest": arrays_digest(arrays), "source": source}
                (work / "meta.json").write_text(json.dumps(meta))
                try:
                    work.rename(folder)
                except OSError:
                    if not (folder / "meta.json").is_file():  # else another process was faster
                        raise
        except OSError as error:
            raise RaqError(
                f"{folder}: the decoded images cannot be stored: {error.strerror}",
                "free some space, or point RAQ_CACHE at another folder",
            ) from error
    try:
        digest = str(json.loads((folder / "meta.json").read_text())["digest"])
        arrays = {
            split: np.load(folder / f"{split}.npy", mmap_mode="r" if "images" in split else None) for split in SPLITS
        }
        same = _digest_of_cache(str(folder), _state(folder)) == digest
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{folder}: this cache of decoded images is damaged: {error}", "delete that folder") from None
    if not same:
        raise UserError(
            f"{folder}: this cache of decoded images has been changed since it was written",
            "delete that folder: it is decoded anew",
        )
    return arrays, digest, source


def _state(folder: Path) -> tuple[tuple[int, int, int], ...]:
    """Sizes and times of the cached files, as a key: a process computes the digest again only when one changes."""
    stats = [(folder / f"{split}.npy").stat() for split in SPLITS]
    return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats)


@lru_cache(maxsize=16)
def _digest_of_cache(folder: str, state: tuple[tuple[int, int, int], ...]) -> str:
    """`arrays_digest`, computed anew: what meta.json says is verified, not trusted."""
    return arrays_digest({split: np.load(Path(folder) / f"{split}.npy", mmap_mode="r") for split in SPLITS})


def arrays_digest(arrays: dict[str, Array]) -> str:
    """SHA-256 over shapes, types and contents of the four arrays."""
    digest = hashlib.sha256()
    for split in SPLITS:
        array = np.ascontiguousarray(arrays[split])
        digest.update(f"{split} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def checked(arrays: dict[str, Array], source: str) -> dict[str, Array]:
    """The four arrays, labels as int64; UserError unless images are uint8 [N, C, H, W] with a label from 0 up for
    each."""

    def refuse(what: str) -> UserError:
        return UserError(f"{source}: {what}", FORM)

    labels = {}
    for split in ("train", "test"):
        images, given = arrays[f"{split}_images"], np.asarray(arrays[f"{split}_labels"])
        if images.dtype != np.uint8 or images.ndim != 4 or not 1 <= images.shape[1] <= MAX_CHANNELS:
            raise refuse(f"{split} images are {images.dtype} {list(images.shape)}")
        if given.shape != (len(images),) or given.dtype.kind not in "iu":
            raise refuse(f"{split} labels are {given.dtype} {list(given.shape)} for {len(images)} images")
        if len(images) == 0:
            raise refuse(f"there are no {split} images")
        labels[f"{split}_labels"] = given.astype(np.int64)
    if min(arrays["train_images"].shape[2:]) < 1:
        raise refuse("images have no pixels")
    if labels["train_labels"].max() >= MAX_CLASSES:
        raise refuse(
            f"the largest label is {labels['train_labels'].max()}, and at most {MAX_CLASSES} classes are taken"
        )
    if min(values.min() for values in labels.values()) < 0:
        raise refuse("there is a negative label")
    if labels["test_labels"].max() > labels["train_labels"].max():
        raise refuse("the test split has a class that the training split has not")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        raise refuse("training and test images differ in size")
    return {**{split: arrays[split] for split in SPLITS if "images" in split}, **labels}


def file_stats(files: list[Path]) -> list[list[Any]]:
    """What identifies files without reading them: path, size, mtime and ctime of each.

    ctime changes with the content too, and no program can set it back, unlike mtime: a file whose content is replaced
    under its old size and time is noticed. A copy of a data set is decoded anew.
    """
    stats = [(str(file), file.stat()) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, stat in stats]
