"""Images in files, decoded when they are read: of data sets larger than memory. Must not import torch or ray."""

import hashlib
import io
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from raq.environment import available_cpus, cache_folder
from raq.errors import RaqError, UserError
from raq.model.cache import Array, file_stats

DIGEST_BYTES = 16


def decode_image(raw: bytes, where: str, side: int | None) -> Array:
    """One encoded image as uint8 [3, H, W]; scaled and centre-cropped to a square if `side` is given.

    Raises UserError naming `where` if it cannot be read.
    """
    try:
        image = Image.open(io.BytesIO(raw)).convert("RGB")
    except Exception as error:  # damaged images raise many kinds
        raise UserError(f"{where}: not a readable image: {error}", "replace or remove it") from None
    if side is not None:
        image = ImageOps.fit(image, (side, side), method=Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


class EncodedImages(ABC):
    """Encoded images, read like an array uint8 [N, 3, side, side]: those asked for are decoded, on all CPUs."""

    side: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encoded(self, at: int) -> tuple[bytes, str]:
        """One image's bytes, and where they are, for messages."""

    @abstractmethod
    def identity(self) -> Any:
        """Plain values that change when an image does, of which the digests are kept; None: they are made anew."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, 3, side, side]."""
        return (len(self), 3, self.side, self.side)

    def __getitem__(self, which: Array) -> Array:
        found = np.empty((len(which), *self.shape[1:]), dtype=np.uint8)

        def read(place: int) -> None:
            found[place] = decode_image(*self.encoded(int(which[place])), self.side)

        _on_all_cpus(read, range(len(which)))
        return found

    def content_digests(self) -> Array:
        """A digest of each image's bytes, uint8 [N, 16]; read once, and kept until the images change."""
        identity = self.identity()
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        kept = cache_folder() / "digests" / f"{key}.npy"
        with suppress(OSError, ValueError, EOFError):  # not there yet, or damaged: it is made anew
            found: Array = np.load(kept, allow_pickle=False)
            if identity is not None and found.shape == (len(self), DIGEST_BYTES) and found.dtype == np.uint8:
                return found
        rows = _on_all_cpus(
            lambda at: hashlib.blake2b(self.encoded(at)[0], digest_size=DIGEST_BYTES).digest(), range(len(self))
        )
        found = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(self), DIGEST_BYTES)
        if identity is not None:
            _keep(found, kept)
        return found

    def digests(self, which: Array) -> list[bytes]:
        """What tells these images apart: their contents."""
        known = self.content_digests()
        return [known[int(at)].tobytes() for at in which]


@dataclass(frozen=True)
class ImageFiles(EncodedImages):
    """Images in files."""

    files: Sequence[str]
    side: int

    def __len__(self) -> int:
        return len(self.files)

    def encoded(self, at: int) -> tuple[bytes, str]:
        """One file's bytes, and its path."""
        return _bytes_of(self.files[at]), self.files[at]

    def identity(self) -> Any:
        """Sizes and times of the files."""
        return file_stats([Path(file) for file in self.files])


def _on_all_cpus(do: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What `do` makes of each; decoding and hashing let other threads run meanwhile."""
    with ThreadPoolExecutor(max(1, len(available_cpus()))) as pool:
        return list(pool.map(do, items))


def _bytes_of(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read: {error.strerror}", "put it back, or remove it from the folder"
        ) from None


def _keep(array: Array, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as scratch:
            np.save(Path(scratch) / path.name, array)
            (Path(scratch) / path.name).replace(path)
    except OSError as error:
        raise RaqError(
            f"{path}: the digests of the images cannot be stored: {error.strerror}",
            "free some space, or point RAQ_CACHE at another folder",
        ) from error
