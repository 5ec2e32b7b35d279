"""Small copies of the test images of which the FP32 network is least sure: those are the ones whose class may change.

A page shows the changed ones from records alone. torch is imported inside the functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raq.stages.call import THUMBNAILS, Call, Results

if TYPE_CHECKING:
    from raq.model.dataset import Dataset

MAX_KEPT, MAX_SIDE = 128, 64
CHANNELS = (1, 3)


def keep_thumbnails(call: Call, dataset: "Dataset", margins: Any) -> Results:
    """Keep the images with the smallest margins, the logit of the first class less that of the second, float32 [N].

    Nothing where samples are no images of one or three channels.
    """
    from raq.model.images import ImageDataset

    if not isinstance(dataset, ImageDataset) or dataset.test_images.shape[1] not in CHANNELS:
        return {}
    places = np.sort(np.argsort(margins, kind="stable")[:MAX_KEPT])
    images = np.stack([_small(image) for image in dataset.test_images[places]])
    np.savez(Path(call.folder) / THUMBNAILS, allow_pickle=False, places=places.astype(np.int64), images=images)
    return {"thumbnails": len(places)}


def _small(image: Any) -> Any:
    """uint8 [C, H, W] with no side longer than MAX_SIDE."""
    from PIL import Image

    if max(image.shape[1:]) <= MAX_SIDE:
        return image
    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    small = np.asarray(picture)
    return small[None] if small.ndim == 2 else small.transpose(2, 0, 1)
