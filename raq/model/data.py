"""Data sets as uint8 arrays, decoded once into memory-mapped files of a per-user cache.

Finding and decoding only, in NumPy: what happens to a batch (crop, flip, normalise) is in augmentation.py.
The folder `RAQ_CACHE` (default: ~/.cache/raq) holds one folder a source, named by what the source's files are,
and in it the arrays and their digest; a change of the source is another folder. Must not import torch or ray
at its top: plans are made without them.
"""

import hashlib
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raq.errors import RaqError, UserError
from raq.experiment import Data

Array = npt.NDArray[Any]
SPLITS = ("train_images", "train_labels", "test_images", "test_labels")
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagefolder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's, as torchvision's weights expect
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
MAX_CLASSES = 100_000
DECODER = 1  # counts up when decoding changes: arrays of older decoders are not read again
LIMIT_SEED = 20240  # samples of train_limit and test_limit do not move with the experiment's seed


@dataclass(frozen=True)
class Images:
    """Some of the images of a memory-mapped array, uint8 [N, 3, H, W]; only those asked for are read."""

    stored: Array
    indices: Array

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, which: Array) -> Array:
        return self.stored[self.indices[which]]

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, 3, H, W]."""
        return (len(self.indices), *self.stored.shape[1:])


@dataclass(frozen=True)
class Dataset:
    """A data set after limits and hold-out.

    images: uint8 [N, 3, H, W]; labels: int64 [N], from 0 to classes - 1. The hold-out (`validation_*`) is a part of
    the training split that is neither trained on nor calibrated with. `mean` and `std` are of pixels / 255.
    """

    train_images: Images
    train_labels: Array
    validation_images: Images
    validation_labels: Array
    test_images: Images
    test_labels: Array
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    source: str

    def describe(self) -> dict[str, Any]:
        """Counts, shapes and digest, for plans and records."""
        return {
            "digest": self.digest,
            "source": self.source,
            "classes": self.classes,
            "train_images": len(self.train_images),
            "validation_images": len(self.validation_images),
            "test_images": len(self.test_images),
            "image_shape": list(self.train_images.shape[1:]),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def load_dataset(data: Data, working_directory: str | None = None, expect_digest: str | None = None) -> Dataset:
    """The data set that the experiment asks for; images stay memory-mapped.

    `working_directory` is where module:function is imported from. Raises UserError if the data cannot be found or
    read, or if its digest is not `expect_digest` (another node's copy differs from the one that was planned with).
    """
    decode = {"digits": _digits, "cifar10": _cifar10, "imagefolder": _imagefolder}.get(data.name)
    arrays, digest, source = decode(data) if decode else _users_own(data, working_directory)
    if expect_digest is not None and digest != expect_digest:
        raise UserError(
            f"data {data.name!r} from {source} differs from the data of the plan (digest {digest[:12]}, "
            f"planned {expect_digest[:12]})",
            "put the same files on every node",
        )
    classes = int(arrays["train_labels"].max()) + 1
    train = _sample(len(arrays["train_labels"]), data.train_limit, "data.train_limit", source)
    test = _sample(len(arrays["test_labels"]), data.test_limit, "data.test_limit", source)
    held_out = round(len(train) * data.validation)
    if held_out >= len(train):
        raise UserError(f"data.validation holds out all {len(train)} training images", "lower data.validation")
    validation = np.sort(np.random.default_rng(LIMIT_SEED + 1).permutation(train)[:held_out])
    train = np.setdiff1d(train, validation, assume_unique=True)
    mean, std = _normalisation(data, arrays["train_images"])
    return Dataset(
        train_images=Images(arrays["train_images"], train),
        train_labels=arrays["train_labels"][train],
        validation_images=Images(arrays["train_images"], validation),
        validation_labels=arrays["train_labels"][validation],
        test_images=Images(arrays["test_images"], test),
        test_labels=arrays["test_labels"][test],
        classes=classes,
        mean=mean,
        std=std,
        digest=digest,
        source=source,
    )


def calibration_indices(train_count: int, size: int, seed: int) -> Array:
    """Which training images calibrate: a sample without replacement; a smaller size is a prefix of a larger one."""
    return np.random.default_rng(seed).permutation(train_count)[:size]


def import_function(name: str, working_directory: str | None) -> Callable[..., Any]:
    """The user's `module:function`, with the working directory on the path.

    Raises UserError if it cannot be imported or is no function; the user's own exception is named.
    """
    module_name, _, function_name = name.partition(":")
    with on_path(working_directory):
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{name}: cannot be imported: {type(error).__name__}: {error}",
                f"{module_name} is looked for in {working_directory or Path.cwd()} and among installed packages",
            ) from error
    if not callable(function):
        raise UserError(f"{name}: {function_name} is no function", "name a function of the module")
    return function


def source_digest(name: str, working_directory: str) -> str | None:
    """SHA-256 of the code behind the user's `module:function`, without running it; None if it has no file.

    The module's own file, and every module below the working directory that it imports, directly or not.
    """
    module = name.partition(":")[0]
    with on_path(working_directory):
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    files = {Path(spec.origin)}
    finder = ModuleFinder(path=[working_directory])  # reads import statements; what lies elsewhere is not followed
    with suppress(SyntaxError):  # importing it will say so
        finder.load_file(spec.origin)
    followed = [getattr(found, "__file__", None) for found in finder.modules.values()]
    files |= {Path(file) for file in followed if file}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@contextmanager
def on_path(folder: str | None) -> Iterator[None]:
    """With the folder first on the module search path; None changes nothing."""
    if folder is None or folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def cache_folder() -> Path:
    """The per-user cache: `RAQ_CACHE`, else ~/.cache/raq."""
    return Path(os.environ.get("RAQ_CACHE") or Path.home() / ".cache" / "raq")


def _sample(count: int, limit: int | None, key: str, source: str) -> Array:
    if limit is None or limit == count:
        return np.arange(count)
    if limit > count:
        raise UserError(f"{key} is {limit}, and {source} has {count} images", f"lower {key} to at most {count}")
    return np.sort(np.random.default_rng(LIMIT_SEED).permutation(count)[:limit])


def _normalisation(data: Data, images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The experiment's mean and std, else the data set's published ones, else those of the training images."""
    if data.mean is not None and data.std is not None:
        return data.mean, data.std
    if data.name in NORMALISATION:
        return NORMALISATION[data.name]
    count = 0.0
    total = np.zeros(3)
    squares = np.zeros(3)
    for start in range(0, len(images), 1024):
        chunk = images[start : start + 1024].astype(np.float64) / 255  # [n, 3, H, W]
        count += chunk.size / chunk.shape[1]
        total += chunk.sum(axis=(0, 2, 3))
        squares += (chunk**2).sum(axis=(0, 2, 3))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(np.maximum(std, 1e-2), 4).tolist())


# --- the cache ---


def _cached(
    name: str, identity: Any, decode: Callable[[], dict[str, Array]], source: str
) -> tuple[dict[str, Array], str, str]:
    """The arrays of a source, decoded at most once, with their digest.

    The folder appears whole or not at all; a second process that decodes at the same time loses nothing.
    """
    key = hashlib.sha256(
        json.dumps([DECODER, metadata.version("pillow"), name, identity], sort_keys=True).encode()
    ).hexdigest()[:24]
    folder = cache_folder() / "arrays" / f"{name.replace(':', '-')}-{key}"
    if not (folder / "meta.json").is_file():
        arrays = _checked(decode(), source)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as scratch:
                work = Path(scratch) / "arrays"
                work.mkdir()
                for split, array in arrays.items():
                    np.save(work / f"{split}.npy", array)
                meta = {"digest": _digest(arrays), "source": source}
                (work / "meta.json").write_text(json.dumps(meta))
                if not folder.exists():
                    work.rename(folder)
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
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise UserError(f"{folder}: this cache of decoded images is damaged: {error}", "delete that folder") from None
    return arrays, digest, source


def _digest(arrays: dict[str, Array]) -> str:
    """SHA-256 over shapes, types and contents of the four arrays."""
    digest = hashlib.sha256()
    for split in SPLITS:
        array = np.ascontiguousarray(arrays[split])
        digest.update(f"{split} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _checked(arrays: dict[str, Array], source: str) -> dict[str, Array]:
    """The arrays, if they are what a data set is: uint8 [N, 3, H, W] and a label from 0 up for each."""

    def refuse(what: str) -> UserError:
        return UserError(f"{source}: {what}", "images are uint8 [N, 3, H, W], labels whole numbers [N] from 0")

    labels = {}
    for split in ("train", "test"):
        images, given = arrays[f"{split}_images"], np.asarray(arrays[f"{split}_labels"])
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
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


def _listing(files: list[Path]) -> list[list[Any]]:
    """What identifies files without reading them: path, size, time of last change."""
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


# --- the sources ---


def _digits(data: Data) -> tuple[dict[str, Array], str, str]:
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

    return _cached("digits", [metadata.version("scikit-learn")], decode, "scikit-learn")


def _cifar10(data: Data) -> tuple[dict[str, Array], str, str]:
    """CIFAR-10 from a folder (torchvision's official one, or parquet as on the Hugging Face hub), or downloaded."""
    places = [Path(p) for p in (data.root, os.environ.get("RAQ_DATA")) if p] + [cache_folder() / "data"]
    looked: list[str] = []
    for place in places:
        for folder in (place, place / "cifar10", place / "plain_text", place / "cifar10" / "plain_text"):
            looked.append(str(folder))
            official = folder / "cifar-10-batches-py"
            if official.is_dir():
                files = sorted(f for f in official.iterdir() if f.is_file())
                return _cached("cifar10", _listing(files), partial(_read_official_cifar10, folder), str(official))
            parts = {split: sorted(folder.glob(f"{split}*.parquet")) for split in ("train", "test")}
            if parts["train"] and parts["test"]:
                identity = _listing(parts["train"] + parts["test"])
                return _cached("cifar10", identity, partial(_read_parquet, parts), str(folder))
    return _download_cifar10(places[-1], looked)


def _download_cifar10(folder: Path, looked: list[str]) -> tuple[dict[str, Array], str, str]:
    from torchvision.datasets import CIFAR10

    try:
        folder.mkdir(parents=True, exist_ok=True)
        CIFAR10(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        reason = _first_line(error)
        raise UserError(
            f"cifar10 is in none of {', '.join(looked)}, and cannot be downloaded ({reason})",
            "put torchvision's cifar-10-batches-py, or train*.parquet and test*.parquet as on the Hugging "
            "Face hub, into one of them; or set data.root or RAQ_DATA to where they are",
        ) from None
    official = folder / "cifar-10-batches-py"
    files = sorted(f for f in official.iterdir() if f.is_file())
    return _cached("cifar10", _listing(files), partial(_read_official_cifar10, folder), str(official))


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
                    f"{file}: not a readable parquet file with img and label: {_first_line(error)}",
                    "get the file again",
                ) from None
            images += [_decode_image(raw, f"{file}, row {n}", None) for n, raw in enumerate(encoded)]
        arrays[f"{split}_images"] = _stack(images, files[0])
        arrays[f"{split}_labels"] = np.asarray(labels)
    return arrays


def _imagefolder(data: Data) -> tuple[dict[str, Array], str, str]:
    """train/ and test/ with one folder a class; images scaled and centre-cropped to data.image_size."""
    root = Path(data.root or os.environ.get("RAQ_DATA") or ".")
    listed: dict[str, list[tuple[Path, str]]] = {}
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise UserError(
                f"data imagefolder: {root / split} is not a folder",
                "data.root is a folder with train/ and test/, each with one folder a class",
            )
        listed[split] = [
            (file, folder.name)
            for folder in sorted(f for f in (root / split).iterdir() if f.is_dir())
            for file in sorted(folder.rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not listed[split]:
            raise UserError(
                f"data imagefolder: no images below {root / split}",
                f"put images ({', '.join(IMAGE_SUFFIXES[:3])}, ...) into one folder a class",
            )
    classes = {name: n for n, name in enumerate(sorted({name for _, name in listed["train"]}))}
    unknown = sorted({name for _, name in listed["test"]} - set(classes))
    if unknown:
        raise UserError(
            f"data imagefolder: {root / 'test'} has the class {unknown[0]!r}, train/ has not", "match the folders"
        )

    def decode() -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for split, pairs in listed.items():
            images = [_decode_image(file.read_bytes(), str(file), data.image_size) for file, _ in pairs]
            arrays[f"{split}_images"] = _stack(images, root)
            arrays[f"{split}_labels"] = np.asarray([classes[name] for _, name in pairs])
        return arrays

    identity = [data.image_size, _listing([file for pairs in listed.values() for file, _ in pairs])]
    return _cached("imagefolder", identity, decode, str(root))


def _users_own(data: Data, working_directory: str | None) -> tuple[dict[str, Array], str, str]:
    """The user's function: (train images, train labels, test images, test labels)."""
    function = import_function(data.name, working_directory)
    try:
        with on_path(working_directory):
            returned = function()
        arrays = {split: np.asarray(array) for split, array in zip(SPLITS, returned, strict=True)}
    except (Exception, SystemExit) as error:
        raise UserError(
            f"data {data.name}: {type(error).__name__}: {error}",
            "it returns (train images, train labels, test images, test labels)",
        ) from error
    arrays = _checked(arrays, f"data {data.name}")
    return arrays, _digest(arrays), data.name


def _decode_image(raw: bytes, where: str, side: int | None) -> Array:
    """One encoded image as uint8 [3, H, W]; scaled and centre-cropped to a square if `side` is given."""
    import io

    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(raw)).convert("RGB")
    except Exception as error:  # damaged images raise many kinds
        raise UserError(f"{where}: not a readable image: {error}", "replace or remove it") from None
    if side is not None:
        image = ImageOps.fit(image, (side, side), method=Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _stack(images: list[Array], where: Path) -> Array:
    if not images:
        raise UserError(f"{where}: no images in it", "get the file again")
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise UserError(f"{where}: images of different sizes: {sorted(shapes)[:3]}", "make them one size")
    return np.stack(images)
