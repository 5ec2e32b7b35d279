"""Data sets of the Hugging Face hub, by name: images and their classes, from the cache or a folder; never downloaded.

The library `datasets` reads them. Must not import torch or ray.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raq.errors import UserError, first_line
from raq.lazy import require_library
from raq.model.cache import Array, file_stats
from raq.model.image_files import EncodedImages

OTHERS = "others are a function of yours: raq.Data(train=raq.Columns(dataset['train'], inputs=..., target=...), ...)"
TEST_SPLITS = ("test", "validation")


@dataclass(frozen=True)
class HubImages(EncodedImages):
    """The images of a split: a column of {"bytes", "path"}, memory-mapped by its library."""

    rows: Any
    column: str
    side: int
    source: str

    def __len__(self) -> int:
        return len(self.rows)

    def encoded(self, at: int) -> tuple[bytes, str]:
        """One image's bytes, and its row."""
        where, found = f"{self.source}, row {at}", self.rows[at][self.column]
        try:
            return (found["bytes"] if found["bytes"] is not None else Path(found["path"]).read_bytes()), where
        except (TypeError, KeyError, OSError) as error:
            raise UserError(f"{where}: has no image: {first_line(error)}", "leave the row out") from None

    def identity(self) -> Any:
        """Sizes and times of the library's files; None where the images lie in others."""
        files = [Path(file["filename"]) for file in self.rows.cache_files]
        inside = len(self) > 0 and self.rows[0][self.column]["bytes"] is not None
        return [self.column, len(self), file_stats(files)] if files and inside else None


def read_hub_dataset(
    name: str, root: str | None, side: int
) -> tuple[dict[str, HubImages], dict[str, Array], list[str] | None]:
    """Images and classes, int64 [N], by split, train and test: from the folder `root`, else from the cache.

    And the names of the classes in order, where it has them.

    Its test split is `test`, or `validation` where there is none. Raises UserError if it is in neither place, or if it
    is not made of images and classes.
    """
    require_library("datasets", "datasets")
    splits = _load(name, root)
    test = next((split for split in TEST_SPLITS if split in splits), None)
    if "train" not in splits or test is None:
        raise UserError(
            f"data hf:{name} has the splits {', '.join(splits)}, and a train and a test split are needed", OTHERS
        )
    chosen = {"train": splits["train"], "test": splits[test]}
    image, label = _columns(name, chosen["train"].features)
    images: dict[str, HubImages] = {}
    labels: dict[str, Array] = {}
    for split, rows in chosen.items():
        where = f"data hf:{name}, {split if split == 'train' else test}"
        try:
            images[split] = HubImages(_with_bytes(rows, image), image, side, where)
            found = np.asarray(rows.with_format("numpy")[label][:])
            if found.dtype.kind not in "iu" or found.ndim != 1:
                raise ValueError(f"{label} holds {found.dtype}, and classes are whole numbers")
            labels[split] = found.astype(np.int64)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: not images and classes: {first_line(error)}", OTHERS) from None
        if len(labels[split]) == 0 or labels[split].min() < 0:
            raise UserError(
                f"{where}: {int((labels[split] < 0).sum())} of {len(labels[split])} samples have no class",
                "a test split without classes judges nothing: " + OTHERS,
            )
    names = getattr(chosen["train"].features[label], "names", None)
    return images, labels, None if names is None else list(names)


def _load(name: str, root: str | None) -> Mapping[str, Any]:
    """Its splits by name."""
    with _offline():
        import datasets

        datasets.disable_progress_bars()
        folder = Path(root).expanduser() if root is not None else _cached(name)
        try:
            if (folder / "dataset_dict.json").is_file():
                found: Any = datasets.load_from_disk(str(folder))
            else:
                _refuse_addresses(name, folder)
                found = datasets.load_dataset(str(folder))
        except UserError:
            raise
        except Exception as error:  # it raises many kinds
            raise UserError(f"data hf:{name}: {folder} cannot be read: {first_line(error)}", OTHERS) from error
    return dict(found) if isinstance(found, Mapping) else {"train": found}


@contextmanager
def _offline() -> Iterator[None]:
    """The libraries read their environment once, at their import, which may have been earlier."""
    import datasets
    from huggingface_hub import constants

    places = [place for place in (datasets.config, constants) if hasattr(place, "HF_HUB_OFFLINE")]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _refuse_addresses(name: str, folder: Path) -> None:
    """UserError for a card that names files elsewhere: the library would fetch them, offline or not (datasets 4)."""
    from huggingface_hub import DatasetCard

    card, alone = folder / "README.md", folder / ".huggingface.yaml"
    known = [DatasetCard.load(card).data.to_dict()] if card.is_file() else []
    known += [yaml.safe_load(alone.read_text(encoding="utf-8"))] if alone.is_file() else []
    for written in known:
        if isinstance(written, dict) and "://" in json.dumps(written.get("configs"), default=str):
            raise UserError(
                f"data hf:{name}: its card in {folder} names files elsewhere, and nothing is downloaded",
                "get them, and name them there by their places in the folder",
            )


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type="dataset", local_files_only=True))
    except Exception as error:  # names that cannot be, and what is not there
        raise UserError(
            f"data hf:{name} is not in the Hugging Face cache, and nothing is downloaded",
            f"get it first: hf download --repo-type dataset {name}; or set data.root to its folder",
        ) from error


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """Which column has the images, and which the classes."""
    import datasets

    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    classes = classes or [key for key in ("label", "labels") if key in features]
    if len(images) != 1 or len(classes) != 1:
        raise UserError(
            f"data hf:{name} has the columns {', '.join(features)}: {len(images)} of images and {len(classes)} of "
            "classes, and one each is needed",
            OTHERS,
        )
    return images[0], classes[0]


def _with_bytes(rows: Any, image: str) -> Any:
    """The column of images alone, not decoded."""
    import datasets

    return rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
