"""Images in files, decoded when they are read: of data sets larger than memory. Must not import torch or ray."""

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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


@dataclass(frozen=True)
class ImageFiles:
    """Images in files, read like an array uint8 [N, 3, side, side]: those asked for are decoded, on all CPUs."""

    files: Sequence[str]
    side: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, 3, side, side]."""
        return (len(self.files), 3, self.side, self.side)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which: Array) -> Array:
        found = np.empty((len(which), *self.shape[1:]), dtype=np.uint8)

        def read(place: int) -> None:
            file = self.files[int(which[place])]
            found[place] = decode_image(_bytes_of(file), file, self.side)

        _on_all_cpus(read, range(len(which)))
        return found

    def digests(self, which: Array) -> list[bytes]:
        """What tells these images apart: their files' contents."""
        known = content_digests(self.files)
        return [known[int(at)].tobytes() for at in which]


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


def content_digests(files: Sequence[str]) -> Array:
    """A digest of each file's content, uint8 [N, 16]; read once, and kept until a file's size or times change."""
    identity = file_stats([Path(file) for file in files])
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
    kept = cache_folder() / "digests" / f"{key}.npy"
    try:
        found: Array = np.load(kept, allow_pickle=False)
        if found.shape == (len(files), DIGEST_BYTES) and found.dtype == np.uint8:
            return found
    except (OSError, ValueError, EOFError):
        pass  # not there yet, or damaged: it is made anew
    rows = _on_all_cpus(lambda file: hashlib.blake2b(_bytes_of(file), digest_size=DIGEST_BYTES).digest(), files)
    found = np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(files), DIGEST_BYTES)
    _keep(found, kept)
    return found


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
