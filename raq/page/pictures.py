"""Thumbnails of test images, read back from their stage's file, and as PNG. Neither torch nor ray."""

import io
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raq.errors import UserError
from raq.stages.call import THUMBNAILS
from raq.store.files import Record
from raq.store.local import Store

MAX_KEPT, MAX_SIDE = 1024, 64
MAX_BYTES = 2 * MAX_KEPT * 3 * MAX_SIDE**2
DAMAGED = (
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, MemoryError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
AGAIN = "delete its folder and run again"


@dataclass(frozen=True)
class Thumbnails:
    """Some test images. places: int64 [K], in the test split; images: uint8 [K, 1 or 3, H, W]."""

    places: npt.NDArray[np.int64]
    images: npt.NDArray[np.uint8]

    def png(self, place: int) -> bytes | None:
        """The image at a place of the test split as a PNG file; None if it was not kept."""
        from PIL import Image

        found = np.flatnonzero(self.places == place)
        if not len(found):
            return None
        image = self.images[found[0]]
        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG", optimize=True)
        return file.getvalue()


def read_thumbnails(store: Store, record: Record | None) -> Thumbnails | None:
    """Those that an evaluate stage has kept; None if it has kept none. UserError if they are none."""
    if record is None or not record["results"].get("thumbnails"):
        return None
    path = store.file(record, THUMBNAILS)
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > MAX_BYTES:
                raise ValueError(f"it holds more than {MAX_BYTES / 1e6:.0f} MB")
        with np.load(path, allow_pickle=False) as stored:
            places, images = np.asarray(stored["places"]), np.asarray(stored["images"])
    except DAMAGED as error:
        raise UserError(f"{path}: not readable: {type(error).__name__}: {error}", AGAIN) from None
    sensible = images.ndim == 4 and images.dtype == np.uint8 and images.shape[1] in (1, 3)
    sensible = sensible and all(1 <= side <= MAX_SIDE for side in images.shape[2:])
    if not sensible or places.shape != images.shape[:1] or places.dtype != np.int64 or len(places) > MAX_KEPT:
        raise UserError(f"{path}: images of shape {list(images.shape)} are no thumbnails", AGAIN)
    return Thumbnails(places, images)
