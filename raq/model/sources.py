"""Where data sets come from: found, read and decoded into uint8 arrays. Must not import torch or ray at its top."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from raq.environment import cache_folder
from raq.errors import RaqError, UserError, first_line
from raq.experiment.schema import HUB, Data
from raq.model.cache import SPLITS, Array, arrays_digest, cached, checked, file_stats
from raq.model.hub_data import read_hub_dataset
from raq.model.image_files import EncodedImages, ImageFiles, decode_image
from raq.model.user_code import import_function, on_path

Source = tuple[dict[str, Any], str, str]
"""The four arrays by name, and CLASS_NAMES where they are known; their digest; where they come from."""
CLASS_NAMES = "class_names"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DECODED_ONCE_BYTES = 256 * 2**20
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


def digits(data: Data) -> Source:
    """The 1,797 handwritten digits inside scikit-learn, 8x8 grey (0 to 16), scaled to 3x32x32; every fifth is test."""

    def decode() -> dict[str, Array]:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
        images = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)[:, None].repeat(3, axis=1)  # [1797, 3, 32, 32]
        test = np.arange(len(images)) % 5 == 4
        return {
            "train_images": images[~test],
            "train_labels": bunch.target[~test],
            "test_images": images[test],
            "test_labels": bunch.target[test],
        }

    return _named(cached("digits", [metadata.version("scikit-learn")], decode, "scikit-learn"), map(str, range(10)))


def cifar10(data: Data) -> Source:
    """CIFAR-10 from a folder (torchvision's official one, or parquet as on the Hugging Face hub), or downloaded."""
    return _named(_cifar10(data), CIFAR10_CLASSES)


def _cifar10(data: Data) -> Source:
    folder = find_cifar10(data.root)
    if folder is None:
        return _download_cifar10(cache_folder() / "data", cifar10_places(data.root))
    official = folder / "cifar-10-batches-py"
    if official.is_dir():
        files = sorted(f for f in official.iterdir() if f.is_file())
        return cached("cifar10", file_stats(files), partial(_read_official_cifar10, folder), str(official))
    parts = _parquet_parts(folder)
    return cached("cifar10", file_stats(parts["train"] + parts["test"]), partial(_read_parquet, parts), str(folder))


def cifar10_places(root: str | None) -> list[Path]:
    """Where CIFAR-10 is looked for, in order: below data.root, `RAQ_DATA`, the per-user cache."""
    places = [Path(p) for p in (root, os.environ.get("RAQ_DATA")) if p] + [cache_folder() / "data"]
    below = ("", "cifar10", "plain_text", "cifar10/plain_text")
    return [place / folder for place in places for folder in below]


def find_cifar10(root: str | None) -> Path | None:
    """The first of these places that holds it in one of the two forms; None if none does."""
    for folder in cifar10_places(root):
        if (folder / "cifar-10-batches-py").is_dir() or all(_parquet_parts(folder).values()):
            return folder
    return None


def _parquet_parts(folder: Path) -> dict[str, list[Path]]:
    return {split: sorted(folder.glob(f"{split}*.parquet")) for split in ("train", "test")}


def _download_cifar10(folder: Path, looked: list[Path]) -> Source:
    from torchvision.datasets import CIFAR10

    try:
        folder.mkdir(parents=True, exist_ok=True)
        CIFAR10(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"cifar10 is in none of {', '.join(map(str, looked))}, and cannot be downloaded ({reason})",
            "put torchvision's cifar-10-batches-py, or train*.parquet and test*.parquet as on the Hugging "
            "Face hub, into one of them; or set data.root or RAQ_DATA to where they are",
        ) from None
    official = folder / "cifar-10-batches-py"
    files = sorted(f for f in official.iterdir() if f.is_file())
    return cached("cifar10", file_stats(files), partial(_read_official_cifar10, folder), str(official))


def _read_official_cifar10(folder: Path) -> dict[str, Array]:
    """torchvision's folder; its pickles are read only after their MD5 sums are found to be the published ones."""
    from torchvision.datasets import CIFAR10

    arrays: dict[str, Array] = {}
    for split in ("train", "test"):
        try:
            dataset = CIFAR10(str(folder), train=split == "train", download=False)
        except RuntimeError:
            raise UserError(
                f"{folder / 'cifar-10-batches-py'}: files are missing or do not have the official MD5 sums",
                "delete that folder and get it again",
            ) from None
        arrays[f"{split}_images"] = np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))
        arrays[f"{split}_labels"] = np.asarray(dataset.targets, dtype=np.int64)
    return arrays


def _read_parquet(parts: dict[str, list[Path]]) -> dict[str, Array]:
    """Parquet files with the columns img.bytes (an encoded image) and label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays: dict[str, Array] = {}
    for split, files in parts.items():
        images: list[Array] = []
        labels: list[int] = []
        for file in files:
            try:
                table = pq.read_table(file, columns=["img", "label"])
                encoded = [row["bytes"] for row in table.column("img").to_pylist()]
                labels += [int(label) for label in table.column("label").to_pylist()]
            except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{file}: not a readable parquet file with img and label: {first_line(error)}",
                    "get the file again",
                ) from None
            images += [decode_image(raw, f"{file}, row {n}", None) for n, raw in enumerate(encoded)]
        arrays[f"{split}_images"] = _stack(images, files[0])
        arrays[f"{split}_labels"] = np.asarray(labels)
    return arrays


def imagefolder(data: Data) -> Source:
    """train/ and test/ with one folder a class; images scaled and centre-cropped to data.image_size.

    Decoded once and kept if they take up to DECODED_ONCE_BYTES; else decoded whenever they are read.
    """
    root = Path(data.root or os.environ.get("RAQ_DATA") or ".")
    listed = {split: _files_by_class(root, split) for split in ("train", "test")}
    classes = {name: n for n, name in enumerate(sorted({name for _, name in listed["train"]}))}
    unknown = sorted({name for _, name in listed["test"]} - set(classes))
    if unknown:
        raise UserError(
            f"data imagefolder: {root / 'test'} has the class {unknown[0]!r}, train/ has not", "match the folders"
        )
    labels = {split: np.asarray([classes[name] for _, name in pairs]) for split, pairs in listed.items()}
    files = {split: ImageFiles([file for file, _ in pairs], data.image_size) for split, pairs in listed.items()}
    names = [Path(file) for images in files.values() for file in images.files]
    below = [os.fsencode(name.relative_to(root)) for name in names]
    identity = [data.image_size, file_stats(names)]
    found = _few_or_many("imagefolder", files, labels, identity, lambda: _digest(files, labels, below), str(root))
    return _named(found, classes)


def hub(data: Data) -> Source:
    """A data set of the Hugging Face hub, hf:NAME: its images scaled and centre-cropped to data.image_size.

    As of an imagefolder, they are decoded once if they are few.
    """
    images, labels, names = read_hub_dataset(data.name.removeprefix(HUB), data.root, data.image_size)
    digest = _digest(images, labels)
    found = _few_or_many("hub", images, labels, digest, lambda: digest, data.name)
    return found if names is None else _named(found, names)


def _named(found: Source, names: Iterable[str]) -> Source:
    """With the names of the classes, in order."""
    arrays, digest, source = found
    return {**arrays, CLASS_NAMES: tuple(names)}, digest, source


def _few_or_many(
    kind: str,
    images: Mapping[str, EncodedImages],
    labels: Mapping[str, Array],
    identity: Any,
    digest: Callable[[], str],
    source: str,
) -> Source:
    """Images that are decoded once and kept, where they take up to DECODED_ONCE_BYTES; else as they are.

    identity: plain values that change when they do; digest: of them as they are. Gives the four arrays, by name, their
    digest, and the source.
    """
    if sum(math.prod(found.shape) for found in images.values()) > DECODED_ONCE_BYTES:
        return _arrays(images, labels), digest(), source

    def decode() -> dict[str, Array]:
        return _arrays({split: found[np.arange(len(found))] for split, found in images.items()}, labels)

    return cached(kind, identity, decode, source)


def _files_by_class(root: Path, split: str) -> list[tuple[str, str]]:
    """The image files of a split in order, each with its class, which is its folder's name. UserError without any."""
    if not (root / split).is_dir():
        raise UserError(
            f"data imagefolder: {root / split} is not a folder",
            "data.root is a folder with train/ and test/, each with one folder a class",
        )
    found = [
        (str(file), folder.name)
        for folder in sorted(f for f in (root / split).iterdir() if f.is_dir())
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    ]
    if not found:
        raise UserError(
            f"data imagefolder: no images below {root / split}",
            f"put images ({', '.join(IMAGE_SUFFIXES[:3])}, ...) into one folder a class",
        )
    return found


def _arrays(images: Mapping[str, Any], labels: Mapping[str, Array]) -> dict[str, Any]:
    """Images and labels of both splits, as they are named elsewhere."""
    return {
        **{f"{split}_images": found for split, found in images.items()},
        **{f"{split}_labels": found for split, found in labels.items()},
    }


def _digest(images: Mapping[str, EncodedImages], labels: Mapping[str, Array], names: Sequence[bytes] = ()) -> str:
    """SHA-256 over what decodes, the side and, of each image, its class and its content; of files their names too."""
    digest = hashlib.sha256(metadata.version("pillow").encode())
    digest.update(b"\0".join(names))
    for split, found in images.items():
        digest.update(f"{split} {found.shape} {labels[split].tolist()}".encode())
        digest.update(found.content_digests().tobytes())
    return digest.hexdigest()


RETURNS = "it returns (train images, train labels, test images, test labels), or a raq.Data"


def call_function(data: Data, working_directory: str | None) -> Any:
    """What the user's function returns; UserError for whatever it raises."""
    function = import_function(data.name, working_directory)
    try:
        with on_path(working_directory):
            return function()
    except RaqError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"data {data.name}: {type(error).__name__}: {error}", RETURNS) from error


def arrays_of_function(data: Data, returned: Any) -> tuple[dict[str, Array], str, str]:
    """The arrays that the user's function returned: (train images, train labels, test images, test labels)."""
    try:
        arrays = {split: np.asarray(array) for split, array in zip(SPLITS, returned, strict=True)}
    except Exception as error:  # whatever it is, it may raise what it likes
        raise UserError(f"data {data.name}: {type(error).__name__}: {error}", RETURNS) from error
    arrays = checked(arrays, f"data {data.name}")
    return arrays, arrays_digest(arrays), data.name


SOURCES: dict[str, Callable[[Data], Source]] = {
    "digits": digits,
    "cifar10": cifar10,
    "imagefolder": imagefolder,
}


def source_of(name: str) -> Callable[[Data], Source] | None:
    """What reads the data set of this name; None for a function of the user's."""
    return hub if name.startswith(HUB) else SOURCES.get(name)


def _stack(images: list[Array], where: Path) -> Array:
    if not images:
        raise UserError(f"{where}: no images in it", "get the file again")
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise UserError(f"{where}: images of different sizes: {sorted(shapes)[:3]}", "make them one size")
    return np.stack(images)
