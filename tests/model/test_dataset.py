"""Finding, decoding, limiting and refusing data."""

import hashlib
import io
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from raq.errors import UserError
from raq.experiment.schema import Data
from raq.model import sources
from raq.model.checks import data_notes
from raq.model.dataset import calibration_indices, load_dataset
from raq.model.image_files import ImageFiles


def png(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder: Path, train: int = 12, test: int = 5) -> list[tuple[int, int, int]]:
    """CIFAR-10 in the layout of the Hugging Face hub; image n has the colour (n, 2n, 3n)."""
    folder.mkdir(parents=True, exist_ok=True)
    colours = [(n, 2 * n, 3 * n) for n in range(max(train, test))]
    for split, count in (("train", train), ("test", test)):
        rows = [{"bytes": png(colours[n]), "path": None} for n in range(count)]
        table = pa.table({"img": rows, "label": [n % 3 for n in range(count)]})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return colours


def test_digits_are_scikit_learns(digits) -> None:
    whole = load_dataset(Data(name="digits", validation_fraction=0.0))
    assert whole.train_images.shape == (1438, 3, 32, 32)
    assert whole.test_images.shape == (359, 3, 32, 32)
    grey = load_digits().images
    pixels = whole.test_images[np.array([0])][0]  # the fifth digit is the first test image
    assert np.array_equal(pixels[0, ::4, ::4], np.round(grey[4] * 255 / 16).astype(np.uint8))
    assert np.array_equal(pixels[0], pixels[2])
    assert whole.digest == digits.digest


def test_limits_and_hold_out_do_not_overlap(digits) -> None:
    assert (len(digits.train_labels), len(digits.validation_labels), len(digits.test_labels)) == (380, 20, 77)
    train = {digits.train_images[np.array([n])].tobytes() for n in range(380)}
    held = {digits.validation_images[np.array([n])].tobytes() for n in range(20)}
    assert not train & held


def test_calibration_images_are_seeded_nested_and_from_the_training_split() -> None:
    small, large = calibration_indices(1000, 32, 7), calibration_indices(1000, 256, 7)
    assert np.array_equal(small, large[:32])
    assert len(set(large.tolist())) == 256
    assert not np.array_equal(small, calibration_indices(1000, 32, 8))


@pytest.mark.parametrize("below", ["", "cifar10", "plain_text"])
def test_cifar10_from_parquet(tmp_path: Path, below: str) -> None:
    colours = write_parquet(tmp_path / below)
    found = load_dataset(Data(name="cifar10", root=str(tmp_path), validation_fraction=0.0))
    assert found.train_images.shape == (12, 3, 32, 32)
    assert found.test_labels.tolist() == [0, 1, 2, 0, 1]
    assert tuple(found.train_images[np.array([7])][0, :, 5, 5]) == colours[7]
    assert isinstance(found.train_images.stored, np.memmap)
    assert found.mean == (0.4914, 0.4822, 0.4465)


def test_cifar10_by_environment_and_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path)
    monkeypatch.setenv("RAQ_DATA", str(tmp_path))
    first = load_dataset(Data(name="cifar10"))
    monkeypatch.setattr("raq.model.sources.decode_image", lambda *a: pytest.fail("decoded twice"))
    assert load_dataset(Data(name="cifar10")).digest == first.digest


def test_a_changed_source_is_other_data(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    first = load_dataset(Data(name="cifar10", root=str(tmp_path))).digest
    write_parquet(tmp_path, train=13)
    assert load_dataset(Data(name="cifar10", root=str(tmp_path))).digest != first
    with pytest.raises(UserError, match="differs from the data of the plan"):
        load_dataset(Data(name="cifar10", root=str(tmp_path)), expect_digest=first)


def test_an_image_replaced_under_its_size_and_time_is_noticed(tmp_path: Path) -> None:
    write_images(tmp_path)
    file = next(f for f in sorted((tmp_path / "train").rglob("*")) if f.is_file())
    file.write_bytes(file.read_bytes().ljust(1000, b"\0"))
    before = load_dataset(Data(name="imagefolder", root=str(tmp_path), image_size=8)).digest
    stat = file.stat()
    file.write_bytes(png((1, 2, 3), (8, 8)).ljust(stat.st_size, b"\0"))
    assert file.stat().st_size == stat.st_size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_dataset(Data(name="imagefolder", root=str(tmp_path), image_size=8)).digest != before


def test_a_cache_that_was_changed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its content, not by what its own metadata says of it."""
    monkeypatch.setenv("RAQ_CACHE", str(tmp_path / "cache"))
    load_dataset(Data(name="digits"))
    (labels,) = (tmp_path / "cache" / "arrays").glob("digits-*/test_labels.npy")
    content = bytearray(labels.read_bytes())
    content[-8] ^= 1
    labels.write_bytes(content)
    with pytest.raises(UserError, match="has been changed since it was written"):
        load_dataset(Data(name="digits"))


def test_official_cifar10_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's folder format with its real reader; the sums are those of the small files made here."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    sums = {}

    def write(name: str, content: object) -> None:
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    batches = {name: rng.integers(0, 256, (4, 3072)).astype(np.uint8) for name in ("data_batch_1", "test_batch")}
    for name, pixels in batches.items():
        write(name, {"data": pixels, "labels": [0, 1, 2, 1]})
    write("batches.meta", {"label_names": ["a", "b", "c"]})
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    found = load_dataset(Data(name="cifar10", root=str(tmp_path), validation_fraction=0.0))
    assert np.array_equal(found.train_images[np.arange(4)], batches["data_batch_1"].reshape(4, 3, 32, 32))

    class Harmful:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (folder / "data_batch_1").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="official MD5"):
        load_dataset(Data(name="cifar10", root=str(tmp_path)))


def test_missing_cifar10_lists_every_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def no_network(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(CIFAR10, "download", no_network)
    monkeypatch.setenv("RAQ_DATA", str(tmp_path / "from-environment"))
    with pytest.raises(UserError) as caught:
        load_dataset(Data(name="cifar10", root=str(tmp_path / "from-experiment")))
    for place in ("from-experiment", "from-environment", "data"):
        assert place in caught.value.message
    assert "parquet" in caught.value.hint


def test_corrupt_files_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    path = tmp_path / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: not a readable parquet"):
        load_dataset(Data(name="cifar10", root=str(tmp_path)))
    pq.write_table(pa.table({"img": [{"bytes": b"no image"}], "label": [0]}), path)
    with pytest.raises(UserError, match="row 0: not a readable image"):
        load_dataset(Data(name="cifar10", root=str(tmp_path)))


def write_images(root: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for n, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.png").write_bytes(png((100 * n, 10 * i, 0), (40, 30)))


def test_imagefolder(tmp_path: Path) -> None:
    write_images(tmp_path)
    found = load_dataset(Data(name="imagefolder", root=str(tmp_path), image_size=24, validation_fraction=0.0))
    assert found.train_images.shape == (6, 3, 24, 24)
    assert found.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert tuple(found.test_images[np.array([3])][0, :, 0, 0]) == (100, 10, 0)
    (tmp_path / "test" / "bird").mkdir()
    (tmp_path / "test" / "bird" / "0.png").write_bytes(png((0, 0, 0)))
    with pytest.raises(UserError, match="'bird'"):
        load_dataset(Data(name="imagefolder", root=str(tmp_path), image_size=24))
    with pytest.raises(UserError, match="is not a folder"):
        load_dataset(Data(name="imagefolder", root=str(tmp_path / "none")))


def test_imagefolder_beyond_a_size_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAQ_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "images"
    write_images(root)
    asked = Data(name="imagefolder", root=str(root), image_size=24, validation_fraction=0.0)
    decoded = load_dataset(asked)
    monkeypatch.setattr(sources, "DECODED_ONCE_BYTES", 1000)
    streamed = load_dataset(asked)
    assert isinstance(streamed.train_images.stored, ImageFiles)
    assert streamed.train_images.shape == decoded.train_images.shape
    which = np.array([3, 0, 5])
    assert np.array_equal(streamed.train_images[which], decoded.train_images[which])
    assert np.array_equal(streamed.test_labels, decoded.test_labels)
    for one, other in zip(
        *(d.batches("test", [which[:2]], torch.device("cpu")) for d in (streamed, decoded)), strict=True
    ):
        assert torch.equal(one.inputs[0], other.inputs[0]) and torch.equal(one.targets, other.targets)
    assert data_notes(streamed) == data_notes(decoded)
    assert load_dataset(asked).digest == streamed.digest
    odd = root / "train" / "cat" / os.fsdecode(b"\xff\n.png")
    odd.write_bytes(png((1, 2, 3), (40, 30)))
    assert load_dataset(asked).digest != streamed.digest, "a name that is no UTF-8 is a name"
    odd.unlink()
    copy = tmp_path / "elsewhere"
    shutil.copytree(root, copy)
    assert load_dataset(asked.model_copy(update={"root": str(copy)})).digest == streamed.digest
    (root / "train" / "cat" / "1.png").write_bytes(png((5, 5, 5), (40, 30)))
    changed = load_dataset(asked)
    assert changed.digest != streamed.digest
    (root / "train" / "cat" / "1.png").write_bytes(b"no image")
    damaged = load_dataset(asked)
    with pytest.raises(UserError, match=r"cat/1\.png: not a readable image"):
        damaged.train_images[np.array([1])]
    (root / "train" / "cat" / "1.png").unlink()
    with pytest.raises(UserError, match=r"cat/1\.png: cannot be read: No such file"):
        damaged.train_images[np.array([0, 1])]


def test_a_damaged_file_of_digests_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAQ_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path)
    files = [str(file) for file in sorted(tmp_path.rglob("*.png"))]
    first = ImageFiles(files, 8).content_digests()
    assert len({row.tobytes() for row in first}) == len({Path(file).read_bytes() for file in files}) == 6
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    for damage in (b"", b"rubbish", kept.read_bytes()[:-3]):
        kept.write_bytes(damage)
        assert np.array_equal(ImageFiles(files, 8).content_digests(), first)


def test_users_own_function(workplace) -> None:
    sys.modules.pop("tiny_user", None)
    found = load_dataset(Data(name="tiny_user:data", validation_fraction=0.0), str(workplace.folder))
    assert (found.classes, found.test_images.shape) == (4, (203, 3, 16, 16))
    pixels = found.train_images[np.arange(512)].astype(float) / 255
    assert np.allclose(found.mean, pixels.mean(axis=(0, 2, 3)), atol=1e-3)
    assert np.allclose(found.std, pixels.std(axis=(0, 2, 3)), atol=1e-3)
    for name, message in {
        "tiny_user:bad_data": "float32",
        "tiny_user:nothing": "cannot be imported",
        "no_such_module:data": "No module named 'no_such_module'",
        "tiny_user:model": "missing 1 required positional argument",
    }.items():
        with pytest.raises(UserError, match=message):
            load_dataset(Data(name=name), str(workplace.folder))
    sys.modules.pop("tiny_user", None)


def test_values_beyond_the_data() -> None:
    with pytest.raises(UserError, match="train_limit is 5000"):
        load_dataset(Data(name="digits", train_limit=5000))
    with pytest.raises(UserError, match=r"holds out all"):
        load_dataset(Data(name="digits", train_limit=3, validation_fraction=0.9))
