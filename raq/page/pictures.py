"""Thumbnails of test images, read back from their stage's file, and as PNG. Neither torch nor ray."""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raq.errors import UserError
from raq.store.files import Record
from raq.store.local import Store

FILE = "thumbnails.npz"
MAX_KEPT, MAX_SIDE = 1024, 64
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
    path = store.file(record, FILE)
    try:
        with np.load(path, allow_pickle=False) as stored:
            places, images = stored["places"], stored["images"]
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise UserError(f"{path}: not readable: {error}", AGAIN) from None
    sides = images.shape[2:]
    sensible = images.ndim == 4 and images.dtype == np.uint8 and images.shape[1] in (1, 3) and max(sides) <= MAX_SIDE
    if not sensible or places.shape != images.shape[:1] or places.dtype != np.int64 or len(places) > MAX_KEPT:
        raise UserError(f"{path}: images of shape {list(images.shape)} are no thumbnails", AGAIN)
    return Thumbnails(places, images)
