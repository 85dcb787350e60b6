"""What a training step draws: streams of their own for each purpose, from seed, step and purpose alone."""

from types import SimpleNamespace

import pytest
import torch
from scripts import load_script

from data.loaders import FaceBatch
from utils.distributed import DistInfo

train = load_script("train")
BATCH, STEPS = 10, 1500
# Pearson's r of independent draws is normal with a deviation of 1 / sqrt(STEPS) = 0.026.
MOST_CORRELATION = 0.1


def faces_of(images: torch.Tensor) -> FaceBatch:
    zeros = torch.zeros(len(images), dtype=torch.int64)
    return FaceBatch(images, zeros, zeros, zeros, zeros, torch.empty(len(images), 0))


def prepared(images: torch.Tensor, step: int, seed: int = 0, **settings) -> train.Batch:
    """What train.py makes of the images (N, 3, H, W) uint8, a whole batch, in this step."""
    config = train.TrainConfig(seed=seed, batch_size=len(images), **settings)
    run = SimpleNamespace(config=config, process=DistInfo(0, 1, torch.device("cpu")), age_cache=None)
    return train.prepare(run, faces_of(images), step)


@pytest.fixture(scope="module")
def drawn() -> dict[str, torch.Tensor]:
    """Which images of each step were flipped, cropped and coloured, read off the pixels: bool (STEPS, BATCH) each."""
    one_sided = torch.zeros(BATCH, 3, 1, 2, dtype=torch.uint8)
    one_sided[..., 0] = 255
    grey = torch.full((BATCH, 3, 16, 16), 100, dtype=torch.uint8)  # contrast and saturation leave it as it is
    as_it_was = (100 - 127.5) / 127.5
    flipped, cropped, coloured = [], [], []
    for step in range(STEPS):
        flipped.append(prepared(one_sided, step).images[:, 0, 0, 0] < 0)
        changed = prepared(grey, step, augmentation="changes").images.flatten(1)
        cropped.append(changed.amin(1) < changed.amax(1))
        coloured.append((changed.amax(1) - as_it_was).abs() > 1e-5)
    return {"flipped": torch.stack(flipped), "cropped": torch.stack(cropped), "coloured": torch.stack(coloured)}


def correlations(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pearson's r of every column of `first` with every one of `second`, over the steps: (BATCH, BATCH)."""
    first, second = ((each - each.mean(0)) / each.std(0) for each in (first.double(), second.double()))
    return first.T @ second / len(first)


def test_no_images_change_goes_with_a_flip_or_another_change_of_any_image(drawn):
    """7b: image i's crop was tied to image 9 i's flip, as both came from one seed."""
    for first, second in (("cropped", "flipped"), ("coloured", "flipped"), ("cropped", "coloured")):
        assert correlations(drawn[first], drawn[second]).abs().max() < MOST_CORRELATION


def test_a_fifth_of_the_images_that_are_not_mirrored_are_cropped(drawn):
    """7b: image 0 of a batch was cropped only if mirrored."""
    for is_mirrored in (False, True):
        for image in range(BATCH):
            steps = drawn["flipped"][:, image] == is_mirrored
            assert drawn["cropped"][steps, image].double().mean() == pytest.approx(0.2, abs=0.05)
    assert drawn["flipped"].double().mean() == pytest.approx(0.5, abs=0.01)
    assert drawn["coloured"].double().mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("augmentation", ["flip", "changes"])
def test_flips_and_permutations_are_drawn_as_before_there_were_streams(augmentation):
    """7b: a checkpoint of an earlier version goes on with the same bits."""
    one_sided = torch.zeros(12, 3, 112, 112, dtype=torch.uint8)
    one_sided[..., :56] = 255
    batch = prepared(one_sided, step=7, seed=3, augmentation=augmentation, accumulation=2)
    assert batch.permutation.tolist() == [1, 0, 3, 4, 2, 5, 1, 4, 2, 0, 5, 3]
    if augmentation == "flip":
        assert (batch.images[:, 0, 0, 0] < 0).int().tolist() == [1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1]


def test_a_step_draws_the_same_again_and_another_step_or_seed_something_else():
    """7b: what is random depends on seed, step and purpose alone, so that a resumed run draws the same."""
    grey = torch.full((BATCH, 3, 16, 16), 100, dtype=torch.uint8)
    first, again, next_step, next_seed = (
        prepared(grey, step, seed, augmentation="changes").images for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, next_step) and not torch.equal(first, next_seed)
