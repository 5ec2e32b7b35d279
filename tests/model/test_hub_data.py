"""Data sets of the Hugging Face hub by name, from a cache and from a folder, made here with its own library."""

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from raq.errors import UserError
from raq.experiment.schema import Data
from raq.model.dataset import load_dataset
from raq.model.images import ImageDataset

datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")
from huggingface_hub import constants  # noqa: E402

REVISION = "0123456789abcdef0123456789abcdef01234567"


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 24, 3)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(count: int, first: int, labels: list[int] | None = None, **more: object):
    features = {"image": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog", "emu"])}
    columns = {
        "image": [{"bytes": png(first + n), "path": None} for n in range(count)],
        "kind": labels or [n % 3 for n in range(count)],
    }
    for name, value in more.items():
        columns[name] = [value] * count
        features[name] = datasets.Value("int64") if isinstance(value, int) else datasets.Image()
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def in_cache(tmp_path: Path, name: str, **splits: object) -> None:
    """As `hf download --repo-type dataset` leaves a data set."""
    place = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(REVISION)
    folder = place / "snapshots" / REVISION / "data"
    folder.mkdir(parents=True)
    for split, found in splits.items():
        found.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def load(name: str, **more: object) -> ImageDataset:
    found = load_dataset(Data(name=f"hf:{name}", image_size=16, validation_fraction=0.0, **more))
    assert isinstance(found, ImageDataset)
    return found


def test_from_the_cache(tmp_path: Path) -> None:
    """Images and classes are those of the rows, in order, decoded as Pillow does; the digest is of their content."""
    in_cache(tmp_path, "me/animals", train=rows(9, 0), test=rows(4, 100))
    found = load("me/animals")
    assert (found.size("train"), found.size("test"), found.classes) == (9, 4, 3)
    assert found.train_images.shape == (9, 3, 16, 16)
    assert found.labels("test").tolist() == [0, 1, 2, 0]
    from PIL import ImageOps

    wanted = ImageOps.fit(Image.open(io.BytesIO(png(2))), (16, 16), method=Image.Resampling.BILINEAR)
    assert np.array_equal(found.train_images[np.array([2])][0], np.asarray(wanted).transpose(2, 0, 1))
    in_cache(tmp_path, "me/others", train=rows(9, 1), test=rows(4, 100))
    in_cache(tmp_path, "me/relabelled", train=rows(9, 0, [2, 1, 0] * 3), test=rows(4, 100))
    digests = {found.digest, load("me/others").digest, load("me/relabelled").digest}
    assert len(digests) == 3


def test_from_a_folder_with_validation_in_place_of_test(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    datasets.DatasetDict({"train": rows(6, 0), "validation": rows(3, 50)}).save_to_disk(folder)
    found = load("whatever", root=str(folder))
    assert (found.size("train"), found.size("test")) == (6, 3)
    in_cache(tmp_path, "animals", train=rows(6, 0), test=rows(3, 50))
    assert load("animals").digest == found.digest, "wherever it lies"


def test_beyond_a_size_images_are_decoded_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_cache(tmp_path, "animals", train=rows(6, 0), test=rows(3, 50))
    decoded = load("animals")
    monkeypatch.setattr("raq.model.sources.DECODED_ONCE_BYTES", 100)
    streamed = load("animals")
    assert type(streamed.train_images.stored).__name__ == "HubImages"
    order = np.array([5, 0, 3])
    assert np.array_equal(streamed.train_images[order], decoded.train_images[order])
    assert list(streamed.train_images.digests()) == list(streamed.train_images.digests())


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (None, "is not in the Hugging Face cache, and nothing is downloaded"),
        ({"train": (6, 0, None, {})}, "has the splits train, and a train and a test split are needed"),
        ({"train": (6, 0, None, {}), "test": (3, 9, [-1, -1, 0], {})}, "2 of 3 samples have no class"),
        (
            {"train": (6, 0, None, {"other": {"bytes": png(1), "path": None}}), "test": (3, 9, None, {"other": None})},
            "2 of images and 1 of classes",
        ),
    ],
    ids=["not there", "no test split", "a test split without classes", "two columns of images"],
)
def test_what_is_refused(tmp_path: Path, splits: dict | None, said: str) -> None:
    if splits is not None:
        in_cache(tmp_path, "animals", **{key: rows(*given[:3], **given[3]) for key, given in splits.items()})
    with pytest.raises(UserError) as raised:
        load("animals")
    assert said in str(raised.value)


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
def test_nothing_is_fetched_whatever_a_data_set_says(tmp_path: Path, file: str) -> None:
    """Its card may name files elsewhere: a server that would have them is not asked."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *told: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        in_cache(tmp_path, "animals", train=rows(6, 0), test=rows(3, 50))
        files = [{"split": "train", "path": f"http://127.0.0.1:{server.server_port}/x.parquet"}]
        written = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
        card = f"---\n{written}---\n" if file == "README.md" else written
        (tmp_path / "hub" / "datasets--animals" / "snapshots" / REVISION / file).write_text(card)
        with pytest.raises(UserError, match="names files elsewhere, and nothing is downloaded"):
            load("animals")
        server.shutdown()
    assert asked == []


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    damaged = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"no image", "path": None}] * 3, "kind": [0, 1, 2]},
        features=rows(1, 0).features,
    )
    in_cache(tmp_path, "animals", train=damaged, test=rows(3, 50))
    with pytest.raises(UserError, match="data hf:animals, train, row 0: not a readable image"):
        load("animals")


@pytest.mark.parametrize("name", ["hf:", "hf:../other", "hf:a/b/c", "hf:a b"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(ValueError, match="is not a data set"):
        Data(name=name)
