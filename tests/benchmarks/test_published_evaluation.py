"""What the benchmark measures ours against is the published evaluation: the same figures as ours."""

import numpy as np
import pytest
import torch

from benchmarks import published_evaluation as published
from benchmarks.protocols import FEWEST, MOST, NUM_IDENTITIES, NUM_IMAGES, fgnet_identities
from evaluation import protocols

JOINT_TOLERANCE = 1e-10  # relative; float64 on both sides


def made_up_faces(seed, num_distractors=0):
    draw = np.random.default_rng(seed)
    identities = np.repeat(np.arange(9), draw.integers(2, 8, 9))
    faces = draw.normal(size=(9, 16))[identities] + 1.5 * draw.normal(size=(len(identities), 16))
    return faces, identities, draw.normal(size=(num_distractors, 16))


def unit_tensor(rows):
    return torch.nn.functional.normalize(torch.from_numpy(rows))


@pytest.mark.parametrize("seed", range(2))
def test_the_loop_over_probes_is_our_leave_one_out(seed):
    faces, identities, _ = made_up_faces(seed)
    theirs = published.leave_one_out(unit_tensor(faces), torch.from_numpy(identities))
    assert 0 < theirs < 100
    assert protocols.leave_one_out(faces, identities)["rank1_percent"] == pytest.approx(theirs, rel=JOINT_TOLERANCE)


@pytest.mark.parametrize("num_distractors", [0, 40])
@pytest.mark.parametrize("seed", range(4))
def test_the_loop_over_probes_and_mates_is_our_mates_against_rest(seed, num_distractors):
    faces, identities, distractors = made_up_faces(seed, num_distractors)
    theirs = published.mates_against_rest(
        unit_tensor(faces), torch.from_numpy(identities), unit_tensor(distractors) if num_distractors else None
    )
    ours = protocols.mates_against_rest(faces, identities, distractors if num_distractors else None)
    assert theirs[0] < theirs[-1] < 100
    assert list(ours.values()) == pytest.approx(theirs, rel=JOINT_TOLERANCE)


def test_a_share_of_the_probes_does_that_share_of_the_work():
    faces, identities, _ = made_up_faces(0)
    rows, labels = unit_tensor(faces), torch.from_numpy(identities)
    parts = [published.mates_against_rest(rows, labels, probes=range(k, len(faces), 3)) for k in range(3)]
    mates = np.bincount(identities)[identities] - 1
    pairs = [mates[k::3].sum() for k in range(3)]
    assert np.average(parts, axis=0, weights=pairs) == pytest.approx(published.mates_against_rest(rows, labels))


def test_every_rank_counted_in_float64_is_our_mates_against_rest():
    faces, identities, distractors = made_up_faces(5, 60)
    pieces = [distractors[:7], distractors[7:]]
    ours = protocols.mates_against_rest(faces, identities, iter(pieces), max_rank=5)
    assert list(ours.values()) == pytest.approx(published.counted_cmc(faces, identities, pieces, 5))


@pytest.mark.parametrize("decimals", [2, 6])
@pytest.mark.parametrize("num_pairs", [200, 203])
def test_the_loop_over_folds_and_thresholds_is_our_ten_fold_verification(num_pairs, decimals):
    draw = np.random.default_rng(num_pairs)
    genuine = draw.random(num_pairs) < 0.5
    scores = np.clip(draw.normal(0, 0.3, num_pairs) + 0.3 * genuine, -1, 1).round(decimals)
    ours = protocols.ten_fold_verification(scores, genuine)
    theirs = published.ten_fold_verification(scores, genuine)
    assert list(ours.values()) == pytest.approx(theirs, rel=JOINT_TOLERANCE)


def test_the_benchmark_has_as_many_people_and_pictures_as_fgnet():
    counts = np.bincount(fgnet_identities(np.random.default_rng(0)))
    assert (len(counts), counts.sum()) == (NUM_IDENTITIES, NUM_IMAGES)
    assert (counts.min(), counts.max()) == (FEWEST, MOST)
