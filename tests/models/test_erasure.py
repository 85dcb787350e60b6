"""models/erasure.py: the known-good erasure, and what defines one: nothing of the age is linear in what is left."""

import numpy as np
import pytest
from scripts import ROOT

from meta import UserError
from models.erasure import BASES, BLOCK, ErasureFitter, spline

GOLDEN = ROOT / "tests" / "golden"
DENSE = (0, 2, 4, 7, 11, 16, 25, 40, 60, 90)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "erasure.npz"))


def fitted(features, ages, order=None, num_parts=1, **settings) -> ErasureFitter:
    fitter = ErasureFitter(features.shape[1], **settings)
    for rows in np.array_split(np.arange(len(ages)) if order is None else order, num_parts):
        fitter.add(features[rows], ages[rows])
    return fitter


@pytest.mark.parametrize("num_parts", [1, 7, 600])
def test_the_known_good_erasure_in_any_order_and_batches(golden, num_parts):
    """Mean, projection and purified features agree to 1e-9."""
    order = np.random.default_rng(num_parts).permutation(len(golden["ages"]))
    erasure = fitted(golden["features"], golden["ages"], order, num_parts).solve()
    assert erasure.rank == 5
    for found, name in (
        (erasure.mean, "mean"),
        (erasure.projection, "projection"),
        (erasure(golden["new"]), "purified"),
    ):
        np.testing.assert_allclose(found, golden[name], rtol=0, atol=1e-9)


def test_sums_of_several_processes_are_merged(golden):
    """Also with one that has seen nothing; features far from 0 cost no digits."""
    features, ages = golden["features"] + 1e4, golden["ages"]
    parts = [fitted(features[rows], ages[rows]) for rows in (slice(0, 450), slice(450, 451), slice(451, 600))]
    whole = ErasureFitter(48).merge(parts[2]).merge(parts[0]).merge(ErasureFitter(48)).merge(parts[1])
    np.testing.assert_allclose(whole.solve().projection, golden["projection"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("basis", "rank"), [("spline", 5), ("groups", 7), ("linear", 1), (spline(DENSE), 9)])
@pytest.mark.parametrize("shrinkage", [1e-5, 1.0])
def test_no_function_of_the_basis_is_linear_in_what_is_left(golden, basis, rank, shrinkage):
    """Whatever the shrinkage; a projection, which a second time changes nothing."""
    features, ages = golden["features"], golden["ages"]
    erasure = fitted(features, ages, basis=basis, shrinkage=shrinkage).solve()
    left = erasure(features)
    functions = (BASES[basis]() if isinstance(basis, str) else basis)(ages)
    assert functions.shape == (600, rank) and erasure.rank == rank
    covariance = left.T @ (functions - functions.mean(axis=0)) / len(ages)
    assert np.abs(covariance).max() < 1e-12 * np.abs(features).max() * np.abs(functions).max()
    np.testing.assert_allclose(erasure.projection @ erasure.projection, erasure.projection, atol=1e-9)
    assert np.linalg.matrix_rank(erasure.projection) == 48 - rank
    share = 1 - left.var(axis=0).sum() / features.var(axis=0).sum()
    assert erasure.variance_removed == pytest.approx(share, abs=1e-12) and 0 < share < 1


def test_the_hat_functions_are_piecewise_linear_and_constant_outside():
    ages = np.array([0, 4, 8, 12, 16, 65, 80, 95.0])
    np.testing.assert_allclose(spline()(ages)[:, 0], [0, 0.5, 1, 0.5, 0, 0, 0, 0])
    np.testing.assert_allclose(spline()(ages)[:, 4], [0, 0, 0, 0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(spline((8, 16, 30, 50, 80))(ages), spline()(ages))  # 0 is added


def test_short_floats_and_many_rows_at_once(golden):
    """Products are in float64 whatever comes, block by block."""
    many = np.tile(golden["features"], (2 * BLOCK // 600 + 1, 1)).astype(np.float32)
    ages = np.tile(golden["ages"], len(many) // 600)
    assert len(many) > 2 * BLOCK
    np.testing.assert_allclose(fitted(many, ages).solve().projection, golden["projection"], atol=1e-5)


def with_nan(features, ages):
    features[BLOCK // 16 + 3, 7] = np.nan
    return features, ages


BAD = {
    "other shape": (lambda x, a: (x[:, :5], a), "do not fit"),
    "one age short": (lambda x, a: (x, a[1:]), "do not fit"),
    "unknown age": (lambda x, a: (x, a - 40), "leave out pictures whose age is not known"),
    "no finite age": (lambda x, a: (x, a * np.nan), "leave out pictures whose age is not known"),
    "no finite feature": (with_nan, f"in row {BLOCK // 16 + 3}"),
    "one age": (lambda x, a: (x, a * 0 + 30.3), "600 ages are all the same"),
    "one age to the basis": (lambda x, a: (x, a + 80), "600 ages are all the same"),
    "no variance": (lambda x, a: (x * 0 + 3, a), "do not vary"),
    "no pictures": (lambda x, a: (x[:0], a[:0]), "0 ages are all the same"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_no_erasure_can_be_fitted_to_is_one_sentence(golden, what):
    change, words = BAD[what]
    features, ages = change(golden["features"].copy(), golden["ages"])
    with pytest.raises(UserError, match=words):
        fitter = ErasureFitter(48)
        fitter.add(features, ages)
        fitter.solve()


@pytest.mark.parametrize("knots", [(), (0,), (8, 8), (8, 4), (-1, 5)])
def test_knots_are_ascending_years(knots):
    with pytest.raises(UserError, match="not ascending years"):
        spline(knots)
