"""benchmarks/estimators.py: the truth it compares with, and that every estimator is near 0 at 0 and rises."""

import argparse
import math

import numpy as np
import pytest
import torch

from benchmarks import estimators
from benchmarks.critics import infonce, mine, nwj
from models.club import SampledCLUB


@pytest.mark.parametrize("size", [4, 20, 512])
@pytest.mark.parametrize("information", [0, 2, 20])
def test_the_truth_agrees_with_determinants(size, information):
    rho = estimators.correlation_of(information, size)
    covariance = np.eye(2 * size)
    covariance[:size, size:] = covariance[size:, :size] = rho * np.eye(size)
    of_both = np.linalg.slogdet(covariance)[1]  # the marginals' are 0
    assert -of_both / 2 == pytest.approx(information, abs=1e-6)


def test_the_truth_agrees_with_an_integral():
    rho = estimators.correlation_of(0.7, 1)
    x, y = np.meshgrid(*[np.linspace(-8, 8, 801)] * 2)
    marginals = np.exp(-(x**2 + y**2) / 2) / (2 * math.pi)
    log_ratio = -(rho**2 * (x**2 + y**2) - 2 * rho * x * y) / (2 * (1 - rho**2)) - math.log(1 - rho**2) / 2
    assert (marginals * np.exp(log_ratio) * log_ratio).sum() * 0.02**2 == pytest.approx(0.7, abs=1e-6)


def test_drawn_pairs_have_the_correlation():
    x, y = estimators.draw_pairs(20_000, 3, 0.6, torch.Generator().manual_seed(0))
    correlations = np.corrcoef(x.numpy().T, y.numpy().T)[:3, 3:]
    assert np.allclose(correlations, 0.6 * np.eye(3), atol=0.03)


@pytest.mark.parametrize("scale", [0.1, 1, 10])
def test_the_best_club_is_what_the_published_formula_gives_with_the_true_mean(scale):
    size, rho = 4, 0.9
    x, y = estimators.draw_pairs(200_000, size, rho, torch.Generator().manual_seed(1))
    network, variance = SampledCLUB(size), min(max(scale**2 * (1 - rho**2), 1 / math.e), math.e)
    network._fixed_prediction = lambda age: (scale * rho * age, torch.full_like(age, math.log(variance)))
    measured = float(network.mutual_information(x, scale * y, torch.arange(200_000).roll(1)))
    assert measured == pytest.approx(estimators.best_club(size, rho, scale, estimators.VARIANCES), rel=0.02)


def test_the_best_club_lies_above_the_truth_and_its_floor_bites_from_half_a_nat_a_number():
    for information in (2, 9.9, 10.1, 40):
        rho = estimators.correlation_of(information, 20)
        free, held = (estimators.best_club(20, rho, variances=v) for v in ((0, math.inf), estimators.VARIANCES))
        assert free > information
        assert (held < free) == (information > 10)


def test_bounds_agree_with_plain_loops():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    f = scores.numpy()
    rest = [math.exp(f[i, j]) for i in range(5) for j in range(5) if i != j]
    joint = np.mean([f[i, i] for i in range(5)])
    assert float(nwj(scores)) == pytest.approx(joint - np.mean(rest) / math.e)
    assert float(mine(scores)) == pytest.approx(joint - math.log(np.mean(rest)))
    assert float(infonce(scores)) == pytest.approx(
        np.mean([math.log(5 * math.exp(f[i, i]) / sum(math.exp(f[i, j]) for j in range(5))) for i in range(5)])
    )


def test_infonce_never_exceeds_the_logarithm_of_the_batch():
    assert float(infonce(1e3 * torch.eye(16))) == pytest.approx(math.log(16))


@pytest.fixture(scope="module")
def readings():
    return {truth: estimators.train_and_read(truth, 8, 0, steps=100, batch=64, num_read=20) for truth in (0, 1, 4)}


@pytest.mark.parametrize("name", ["CLUB, sampled", "CLUB, unsampled", "InfoNCE", "NWJ", "MINE"])
def test_estimates_are_near_0_at_0_and_rise(readings, name):
    nothing, little, much = (np.mean(readings[truth][name]) for truth in (0, 1, 4))
    assert abs(nothing) < 0.2
    assert nothing + 0.2 < little < much


def test_rows_and_tables_hold_every_estimator():
    flags = argparse.Namespace(seeds=[0, 1], steps=2, batch=8, read=3, scaled_information=1.0, scales=[1.0, 2.0])
    rows = [row for truth in (0, 3) for row in estimators.rows_of(truth, 4, flags)]
    table = estimators.table(rows, 4).splitlines()
    assert len(table) == 2 + 7
    assert table[0] == "| d = 4, nats | I = 0 | I = 3 |"
    row = next(row for row in rows if row["estimator"] == "MINE" and row["truth"] == 3)
    read = [estimators.train_and_read(3, 4, seed, 2, 8, 3)["MINE"] for seed in (0, 1)]
    assert row["mean"] == pytest.approx(np.mean(read))
    assert row["deviation_of_seeds"] == pytest.approx(np.std(np.mean(read, axis=1), ddof=1))
    assert row["deviation_of_batches"] == pytest.approx(np.mean(np.std(read, axis=1, ddof=1)))
    assert len(estimators.scale_table(estimators.scale_rows(4, flags)).splitlines()) == 4
