"""evaluation/embeddings/extraction.py: what comes out is what each picture gives by itself, whatever the batches."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from data.transforms import to_network_input
from evaluation.embeddings.extraction import Extracted, extract, grey_pixels
from utils.distributed import DistInfo

NUM_IMAGES = 7
ALONE = DistInfo(0, 1, torch.device("cpu"))


class LinearModel:
    """Features are linear in the pixels, summed over squares of 8 x 8; each row depends on its own image alone."""

    def __init__(self, seed: int = 0):
        draw = torch.manual_seed(seed)
        self.identity, self.age = torch.randn(2, 3 * 14 * 14, 512, generator=draw) / 20
        self.estimator = torch.randn(512, 8, generator=draw) / 10

    def identity_features(self, images):
        assert images.dtype == torch.float32 and images.abs().max() <= 1 and not torch.is_grad_enabled()
        return F.avg_pool2d(images, 8).flatten(1) @ self.identity

    def age_features(self, images):
        return F.avg_pool2d(images, 8).flatten(1) @ self.age

    def age_logits(self, age_features):
        return age_features @ self.estimator


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:  # (N, 112, 112, 3) uint8: noise on patches, so that no two and no two halves are alike
    draw = np.random.RandomState(0)
    patches = draw.randint(0, 236, (NUM_IMAGES, 14, 14, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return (patches + draw.randint(0, 20, (NUM_IMAGES, 112, 112, 3))).astype(np.uint8)


def batches_of(pictures: np.ndarray, *rows: list[int]) -> list[SimpleNamespace]:
    """Batches as data.loaders makes them, of the pictures at the given rows."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return [SimpleNamespace(images=images[each].contiguous(), indices=torch.tensor(each)) for each in rows]


def in_order(pictures: np.ndarray, batch_size: int) -> list[SimpleNamespace]:
    rows = list(range(len(pictures)))
    return batches_of(pictures, *(rows[start : start + batch_size] for start in range(0, len(rows), batch_size)))


def extracted(batches: list[SimpleNamespace], with_age: bool = True, num_images: int = NUM_IMAGES) -> Extracted:
    return extract(LinearModel(), batches, num_images, ALONE, to_network_input, with_age)


def by_itself(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and age probabilities of one picture (112, 112, 3), by plain float64 sums."""
    model = LinearModel()
    pixels = (picture.astype(np.float64) / 255 - 0.5) / 0.5
    squares = pixels.reshape(14, 8, 14, 8, 3).mean((1, 3))  # (14, 14, 3)
    vector = squares.transpose(2, 0, 1).ravel()  # (588,)
    identity, age, estimator = (tensor.double().numpy() for tensor in (model.identity, model.age, model.estimator))
    logits = np.exp(vector @ age @ estimator)
    return vector @ identity, logits / logits.sum()


def assert_same(a: Extracted, b: Extracted) -> None:
    for name, values in vars(a).items():
        np.testing.assert_allclose(values, getattr(b, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_each_row_is_what_its_picture_and_its_mirror_image_give_by_themselves(pictures):
    result = extracted(in_order(pictures, 3))
    for row, picture in enumerate(pictures):
        turned = np.array(Image.fromarray(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        for view, features, ages in (
            (picture, result.original, result.age_probabilities_original),
            (turned, result.mirror, result.age_probabilities_mirror),
        ):
            expected_features, expected_ages = by_itself(view)
            np.testing.assert_allclose(features[row], expected_features, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(ages[row], expected_ages, rtol=1e-4, atol=1e-6)
    assert not np.allclose(result.original, result.mirror, atol=0.1)


def test_neither_the_batch_size_nor_the_order_matters(pictures):
    expected = extracted(in_order(pictures, 3))
    for batches in (in_order(pictures, 1), in_order(pictures, 100), batches_of(pictures, [6], [4, 0, 2], [1, 5, 3])):
        assert_same(extracted(batches), expected)
    ages = {"age_probabilities_original": 8, "age_probabilities_mirror": 8, "age_features": 512}
    sizes = {"original": 512, "mirror": 512, "grey_pixels": 56 * 56} | ages
    assert {name: values.shape for name, values in vars(expected).items()} == {k: (7, v) for k, v in sizes.items()}
    for probabilities in (expected.age_probabilities_original, expected.age_probabilities_mirror):
        assert (probabilities > 0).all()
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert {values.dtype for values in vars(expected).values()} == {np.dtype(np.float32)}


def test_without_an_age_branch_it_is_not_asked_and_ages_are_none(pictures):
    only_identity = SimpleNamespace(identity_features=LinearModel().identity_features)
    batches = in_order(pictures, 3)
    result = extract(only_identity, batches, NUM_IMAGES, ALONE, to_network_input, with_age=False)
    assert result.age_probabilities_original is None and result.age_probabilities_mirror is None
    assert np.array_equal(result.original, extracted(batches).original)


@pytest.mark.parametrize("rows", [
    [[0, 1], [2, 3], [3, 4]], [[0, 1], [2, 3], [4, 4]], [[0, 1, 2, 3, 4, 0]], [[0, 1], [3, 4]], [[0, 1], [2, 3]], [],
], ids=["twice", "twice in its batch", "twice in the only batch", "never", "last never", "none at all"])  # fmt: skip
def test_an_image_embedded_twice_or_never_is_noticed(pictures, rows):
    with pytest.raises(AssertionError, match="exactly once"):
        extracted(batches_of(pictures, *rows), num_images=5)


def test_grey_pixels_are_pils_within_its_rounding(pictures):
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    grey = grey_pixels(images).numpy().reshape(-1, 56, 56)
    assert np.array_equal(extracted(in_order(pictures, 3)).grey_pixels, grey.reshape(-1, 56 * 56))
    for mine, picture in zip(grey, pictures, strict=True):
        luma = np.array(Image.fromarray(picture).convert("L"), dtype=np.float64)
        expected = (luma.reshape(56, 2, 56, 2).mean((1, 3)) - 127.5) / 127.5
        difference = np.abs(mine - expected) * 127.5  # in grey levels
        assert difference.max() <= 0.51  # PIL rounds each pixel by up to a half
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 112, 112)
    assert grey_pixels(ends)[:, 0].tolist() == pytest.approx([-1, 1], abs=1e-5)
