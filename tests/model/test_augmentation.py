"""Batches: compared with one image at a time, done plainly."""

import torch
from torch.nn import functional as F

from raq.model.augmentation import AugmentationParams, crop_and_flip, draw, flips_of, normalise


def test_crop_and_flip_is_what_one_image_at_a_time_gives() -> None:
    images = torch.randint(0, 256, (16, 3, 12, 12), dtype=torch.uint8)
    draws = draw(flips_of(0, 16, 3), 2, torch.Generator().manual_seed(3))
    assert draws.flips.any()
    assert not draws.flips.all()
    result = crop_and_flip(images, draws, 2)
    for n in range(16):
        row, column = draws.offsets[n].tolist()
        expected = F.pad(images[n].float(), (2, 2, 2, 2), mode="reflect").byte()[
            :, row : row + 12, column : column + 12
        ]
        expected = expected.flip(-1) if draws.flips[n] else expected
        assert torch.equal(result[n], expected)


def test_any_two_epochs_show_each_image_both_ways() -> None:
    shown = [flips_of(epoch, 1000, 7) for epoch in range(4)]
    assert all(bool((shown[epoch] ^ shown[epoch + 1]).all()) for epoch in range(3))
    assert 400 < int(shown[0].sum()) < 600
    assert not torch.equal(flips_of(0, 1000, 8), shown[0]), "of another seed"


def test_parts_of_the_draws_make_the_whole() -> None:
    draws = draw(flips_of(0, 9, 0), 4, torch.Generator().manual_seed(0))
    parts = [draws.part(rank, 2) for rank in range(2)]
    assert torch.equal(parts[0].offsets, draws.offsets[::2])
    assert torch.equal(parts[1].flips, draws.flips[1::2])
    assert isinstance(parts[0], AugmentationParams)


def test_normalise() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(normalise(images, mean, std), (images.float() / 255 - mean) / std)
    assert normalise(images, mean, std, 16).shape == (4, 3, 16, 16)
