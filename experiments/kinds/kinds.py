"""Data sets and networks of seven kinds, each as small as it can be: what `module:function` may return.

Nothing is downloaded: data are drawn from a fixed seed, or are the digits inside scikit-learn. Run from this folder:
`raq run grey.yaml`.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import raq

Array = np.ndarray


# Grey images: uint8 arrays [N, C, H, W] of any number of channels.


def grey_digits() -> tuple[Array, Array, Array, Array]:
    """The digits, 28x28; every fifth is test: (train images, train labels, test images, test labels)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    images = np.repeat(np.repeat(grey, 4, axis=1), 4, axis=2)[:, None, 2:30, 2:30]
    test = np.arange(len(images)) % 5 == 4
    return images[~test], bunch.target[~test], images[test], bunch.target[test]


def grey_network(num_classes: int) -> nn.Module:
    """Three convolutions."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


# A time series of floats: raq.Data of arrays.


def waves() -> raq.Data:
    """Four kinds of wave in noise, float32 [1, 256] each."""
    draws = np.random.default_rng(0)
    kinds = draws.integers(0, 4, 3000)
    t, phase = np.linspace(0, 1, 256), draws.uniform(0, 2 * np.pi, (3000, 1))
    waves = np.sin(2 * np.pi * (4 + 2 * kinds[:, None]) * t + phase) + draws.normal(0, 1, (3000, 256))
    series = waves.astype(np.float32)[:, None]
    return raq.Data(
        train=raq.Arrays(series[:2000], kinds[:2000]), test=raq.Arrays(series[2000:], kinds[2000:]), classes=4
    )


def wave_network(num_classes: int) -> nn.Module:
    """Convolutions over time."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
        layers += [nn.Conv1d(inputs, outputs, 9, 2, 4, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, num_classes))


# A table with two groups of columns, a network that is called by name and gives a dict.


def customers() -> raq.Data:
    """Whether a person and a place go together: inputs by name, float32 [12] and [6]."""
    draws = np.random.default_rng(0)
    person, place = draws.normal(size=(5000, 12)).astype(np.float32), draws.normal(size=(5000, 6)).astype(np.float32)
    fits = person[:, 0] * place[:, 0] + person[:, 1] - place[:, 1] + 0.3 * draws.normal(size=5000) > 0

    def part(first: int, last: int) -> raq.Arrays:
        inputs = {"person": person[first:last], "place": place[first:last]}
        return raq.Arrays(inputs, fits[first:last].astype(np.int64))

    return raq.Data(train=part(0, 3500), test=part(3500, 5000), classes=2)


class TwoTowers(nn.Module):
    """A layer for each input, three for both."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.person, self.place = nn.Linear(12, 256), nn.Linear(6, 256)
        self.both = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
        self.head = nn.Linear(512, classes)

    def forward(self, place: Tensor, person: Tensor) -> dict[str, Tensor]:
        """Logits, and what they are made of."""
        hidden = self.both(torch.cat([self.person(person).relu(), self.place(place).relu()], 1))
        return {"logits": self.head(hidden), "hidden": hidden}


def two_towers(num_classes: int) -> nn.Module:
    """See TwoTowers."""
    return TwoTowers(num_classes)


# Segmentation: targets are masks, judged by mean intersection over union.


def shapes() -> raq.Data:
    """Discs and squares in noise, float32 [3, 48, 48]; masks int64 [48, 48] of background, disc and square."""
    draws = np.random.default_rng(0)
    rows, columns = np.mgrid[0:48, 0:48]
    images, masks = draws.normal(0, 0.6, (600, 3, 48, 48)).astype(np.float32), np.zeros((600, 48, 48), np.int64)
    for image, mask in zip(images, masks, strict=True):
        for kind in (1, 2):
            y, x, size = draws.integers(10, 38), draws.integers(10, 38), draws.integers(5, 10)
            near = (rows - y) ** 2 + (columns - x) ** 2 < size**2
            inside = near if kind == 1 else (abs(rows - y) < size) & (abs(columns - x) < size)
            mask[inside] = kind
            image[:, inside] += np.array([[1.0, 0.2, -0.5], [-0.5, 1.0, 0.3]])[kind - 1, :, None]
    return raq.Data(train=raq.Arrays(images[:400], masks[:400]), test=raq.Arrays(images[400:], masks[400:]), classes=3)


class UNet(nn.Module):
    """Two steps down and up again."""

    def __init__(self, classes: int) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

        self.first, self.second, self.third = block(3, 16), block(16, 32), block(32, 64)
        self.up_two, self.up_one = block(64 + 32, 32), block(32 + 16, 16)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes, H, W]."""
        one = self.first(images)
        two = self.second(F.max_pool2d(one, 2))
        three = self.third(F.max_pool2d(two, 2))
        up = self.up_two(torch.cat([F.interpolate(three, scale_factor=2.0), two], 1))
        logits: Tensor = self.head(self.up_one(torch.cat([F.interpolate(up, scale_factor=2.0), one], 1)))
        return logits


def unet(num_classes: int) -> nn.Module:
    """See UNet."""
    return UNet(num_classes)


# Token ids of any length: a collate that pads, and an axis that varies.

WORDS, LONGEST = 64, 48


class Sentences:
    """Sentences of 6 to 48 words; the class is which of the words 1, 2 and 3 comes most often."""

    def __init__(self, count: int, seed: int) -> None:
        draws = np.random.default_rng(seed)
        self.items = []
        while len(self.items) < count:
            words = draws.integers(1, WORDS, draws.integers(6, LONGEST + 1))
            words[draws.random(len(words)) < 0.4] = draws.integers(1, 4)
            often = [int((words == word).sum()) for word in (1, 2, 3)]
            if often.count(max(often)) == 1:
                self.items.append((torch.from_numpy(words), int(np.argmax(often))))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.items[index]


def padded(items: list[tuple[Tensor, int]]) -> tuple[dict[str, Tensor], Tensor]:
    """Words and a mask, as long as the longest sentence of the batch."""
    longest = max(len(words) for words, _ in items)
    tokens = torch.zeros(len(items), longest, dtype=torch.int64)
    for row, (words, _) in zip(tokens, items, strict=True):
        row[: len(words)] = words
    return {"tokens": tokens, "mask": (tokens > 0).float()}, torch.tensor([kind for _, kind in items])


def sentences() -> raq.Data:
    """Token ids int64 [L] with a mask, L from 2 to 48."""
    varies = {1: ("length", 2, LONGEST)}
    return raq.Data(
        train=Sentences(3000, 0), test=Sentences(1000, 1), collate=padded, classes=3,
        dynamic_axes={"tokens": varies, "mask": varies},
    )  # fmt: skip


class Layer(nn.Module):
    """A layer of a transformer encoder."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.norm_of_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """words [n, L, width], mask [n, L]."""
        count, length, width = words.shape
        normed = self.norm(words)
        query, key, value = (
            part(normed).view(count, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        read = F.scaled_dot_product_attention(query, key, value, (mask[:, None, None] - 1) * 1e4)
        words = words + self.out(read.transpose(1, 2).reshape(count, length, width))
        return words + self.mlp(self.norm_of_mlp(words))


class Encoder(nn.Module):
    """Embeddings, two layers, the mean over words."""

    def __init__(self, classes: int, width: int = 128) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(LONGEST, width)
        self.layers = nn.ModuleList([Layer(width, 4) for _ in range(2)])
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits [n, classes]."""
        words = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            words = layer(words, mask)
        logits: Tensor = self.head((words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
        return logits


def encoder(num_classes: int) -> nn.Module:
    """See Encoder."""
    torch.manual_seed(0)
    return Encoder(num_classes)


# Regression: a number for each row, judged by mean squared error.


def houses() -> raq.Data:
    """A smooth function of 16 numbers, with noise of variance 0.01."""
    draws = np.random.default_rng(0)
    rows = draws.normal(size=(6000, 16)).astype(np.float32)
    price = np.sin(rows[:, 0]) + rows[:, 1] * rows[:, 2] / 2 + np.abs(rows[:, 3]) + draws.normal(0, 0.1, 6000)
    price = price.astype(np.float32)
    return raq.Data(train=raq.Arrays(rows[:4500], price[:4500]), test=raq.Arrays(rows[4500:], price[4500:]))


def regressor() -> nn.Module:
    """Three layers; no classes, so it is called without num_classes."""
    return nn.Sequential(
        nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 1)
    )  # fmt: skip


# A network that is trained already, and a hundred images to calibrate with.


def hundred_digits() -> raq.Data:
    """A test split and 100 images without targets; nothing to train on."""
    train, _, test, labels = grey_digits()
    return raq.Data(test=raq.Arrays(_floats(test), labels), calibration=raq.Arrays(_floats(train[:100])), classes=10)


def _floats(images: Array) -> Array:
    return ((images.astype(np.float32) / 255) - 0.3) / 0.35


def trained_network() -> nn.Module:
    """Random convolutions, and a last layer that least squares have fitted to the digits' training images."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 5, 2, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(64 * 3 * 3, 10),
    ).eval()  # fmt: skip
    images, labels, _, _ = grey_digits()
    with torch.no_grad():
        seen = network[:-1](torch.from_numpy(_floats(images)))
        seen = torch.cat([seen, torch.ones(len(seen), 1)], 1)
        wanted = F.one_hot(torch.from_numpy(labels), 10).float() * 10 - 1
        fitted = torch.linalg.solve(seen.T @ seen + 1e-2 * torch.eye(seen.shape[1]), seen.T @ wanted)
        network[-1].weight.copy_(fitted[:-1].T)
        network[-1].bias.copy_(fitted[-1])
    return network
