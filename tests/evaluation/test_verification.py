"""Exact verification agrees with slow plain versions, with scikit-learn and with itself."""

import numpy as np
import pytest
import reference
from refusals import refused
from sklearn.metrics import roc_auc_score, roc_curve

from evaluation import arrays, verification
from meta import UserError

RATES = verification.FALSE_ACCEPT_RATES


def random_pairs(seed, num_pairs=300, decimals=None, apart=1.0):
    """Scores in [-1, 1] and labels; with decimals, rounded so that many are equal."""
    rng = np.random.default_rng(seed)
    genuine = rng.random(num_pairs) < rng.uniform(0.2, 0.8)
    genuine[:2] = True, False
    scores = np.clip(rng.normal(size=num_pairs) * 0.3 + 0.3 * apart * genuine, -1, 1)
    return (scores if decimals is None else np.round(scores, decimals)), genuine


def random_set(seed, num_pictures=40, num_people=8, size=6, ties=False):
    rng = np.random.default_rng(seed)
    identities = rng.integers(num_people, size=num_pictures)
    identities[:3] = 0, 0, 1  # a genuine and an impostor pair at least
    embeddings = rng.normal(size=(num_people, size))[identities] + rng.normal(size=(num_pictures, size))
    if ties:
        embeddings = np.round(embeddings) + 0.25
        embeddings[rng.integers(num_pictures, size=9)] = embeddings[rng.integers(num_pictures, size=9)]
    return embeddings, identities


def plain_pairs(embeddings, identities):
    """All pairs by loops: scores to 12 decimals, and labels."""
    pairs = [(i, j) for i in range(len(embeddings)) for j in range(i + 1, len(embeddings))]
    scores = [min(1.0, max(-1.0, round(reference.cosine(embeddings[i], embeddings[j]), 12))) for i, j in pairs]
    return np.array(scores), np.array([identities[i] == identities[j] for i, j in pairs])


def counts_of(scores, genuine):
    result = verification.RocAccumulator(scores[genuine])
    result.add(np.sort(scores[~genuine]))
    return result.counts()


def reads_on(curve_x, curve_y, x):
    """Lowest and highest y of the straight lines of a rising curve at x."""
    values = []
    for x0, x1, y0, y1 in zip(curve_x, curve_x[1:], curve_y, curve_y[1:], strict=False):
        if x0 <= x <= x1:
            values += [y0, y1] if x1 == x0 else [y0 + (y1 - y0) * (x - x0) / (x1 - x0)]
    return min(values), max(values)


@pytest.mark.parametrize("decimals", [None, 0, 1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_the_plain_ones(seed, decimals):
    scores, genuine = random_pairs(seed, decimals=decimals)
    figures = verification.verification(scores, genuine)["figures"]
    assert figures["pooled_auc_percent"] == pytest.approx(reference.exact_auc(scores, genuine), rel=1e-12)
    assert figures["pooled_eer_percent"] == pytest.approx(reference.exact_eer(scores, genuine), rel=1e-9)
    num_impostor = int(np.sum(~genuine))
    assert (figures["num_genuine"], figures["num_impostor"]) == (int(genuine.sum()), num_impostor)
    for rate, one_in in RATES.items():
        if num_impostor >= one_in:
            expected = reference.exact_tar_at_far(scores, genuine, one_in)
            assert figures[f"tar_at_far_{rate}_percent"] == pytest.approx(expected, rel=1e-12)
            assert figures[f"tar_at_far_{rate}_reason"] is None
    of_list = verification.pair_list_figures(scores, genuine)
    assert of_list == {name: figures[name] for name in of_list} and "tar_at_far_1e-4_reason" in of_list


@pytest.mark.parametrize("decimals", [None, 2])
@pytest.mark.parametrize("seed", range(2))
def test_figures_are_those_of_scikit_learn(seed, decimals):
    scores, genuine = random_pairs(seed, num_pairs=30_000, decimals=decimals)
    figures = verification.verification(scores, genuine)["figures"]
    assert figures["pooled_auc_percent"] == pytest.approx(100 * roc_auc_score(genuine, scores), rel=1e-12)
    far, tar, _ = roc_curve(genuine, scores, drop_intermediate=False)
    for rate in ("1e-1", "1e-2", "1e-3"):
        expected = 100 * tar[far <= float(rate) + 1e-12].max()
        assert figures[f"tar_at_far_{rate}_percent"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("num_impostor", [9, 10, 999, 1000, 1_000_000])
def test_a_far_that_lets_no_impostor_pass_has_a_reason_and_no_figure(num_impostor):
    rng = np.random.default_rng(num_impostor)
    scores = np.concatenate([rng.normal(size=50) + 2, rng.normal(size=num_impostor)])
    figures = verification.verification(scores, np.arange(len(scores)) < 50)["figures"]
    for rate, one_in in RATES.items():
        allowed = figures[f"impostors_allowed_at_far_{rate}"]
        assert allowed == num_impostor // one_in
        assert (figures[f"tar_at_far_{rate}_percent"] is None) == (num_impostor < one_in)
        reason = figures[f"tar_at_far_{rate}_reason"]
        if num_impostor < one_in:
            assert f"{one_in:,}" in reason and f"{num_impostor:,}" in reason
            assert figures[f"threshold_at_far_{rate}"] is None
        else:
            assert reason is None


@pytest.mark.parametrize("decimals", [None, 2])
def test_the_threshold_gives_its_tar_within_its_far(decimals):
    scores, genuine = random_pairs(3, num_pairs=5000, decimals=decimals)
    figures = verification.verification(scores, genuine)["figures"]
    for rate in ("1e-1", "1e-2", "1e-3"):
        threshold = figures[f"threshold_at_far_{rate}"]
        assert np.sum(scores[~genuine] >= threshold) <= figures[f"impostors_allowed_at_far_{rate}"]
        accepted = 100 * np.mean(scores[genuine] >= threshold)
        assert figures[f"tar_at_far_{rate}_percent"] == pytest.approx(accepted, rel=1e-12)


def test_a_tar_of_nothing_has_no_threshold():
    scores, genuine = np.array([*np.linspace(0.5, 0.9, 20), 0.1, 0.2]), np.arange(22) >= 20
    figures = verification.verification(scores, genuine)["figures"]
    assert figures["tar_at_far_1e-1_percent"] == 0
    assert figures["threshold_at_far_1e-1"] is None and figures["tar_at_far_1e-1_reason"] is None


def test_labels_at_random_are_chance():
    scores, _ = random_pairs(1, num_pairs=40_000)
    genuine = np.random.default_rng(2).random(40_000) < 0.5
    figures = verification.verification(scores, genuine)["figures"]
    assert figures["pooled_auc_percent"] == pytest.approx(50, abs=1)
    assert figures["pooled_eer_percent"] == pytest.approx(50, abs=1)
    assert figures["tar_at_far_1e-2_percent"] == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("decimals", [None, 1, 2])
@pytest.mark.parametrize("seed", range(2))
def test_corners_are_the_roc_of_scikit_learn(seed, decimals):
    scores, genuine = random_pairs(seed, decimals=decimals)
    impostor, accepted = verification.roc_corners(counts_of(scores, genuine))
    far, tar, _ = roc_curve(genuine, scores, drop_intermediate=False)
    for x, y in zip(far, tar, strict=True):  # each point of theirs lies on our lines
        low, high = reads_on(impostor / impostor[-1], accepted / accepted[-1], x)
        assert low - 1e-12 <= y <= high + 1e-12
    theirs = {(round(x * impostor[-1]), round(y * accepted[-1])) for x, y in zip(far, tar, strict=True)}
    one_step = set(zip(impostor.tolist(), accepted.tolist(), strict=True)) - theirs
    assert not one_step  # each corner of ours is a point of theirs
    for values in (impostor, accepted):  # and none stands in the middle of a level or an upright line
        assert not np.any((np.diff(values)[1:] == 0) & (np.diff(values)[:-1] == 0))


@pytest.mark.parametrize("apart", [0.0, 1.0, 4.0])
def test_a_thinned_curve_is_short_close_and_made_of_exact_corners(apart):
    scores, genuine = random_pairs(5, num_pairs=30_000, apart=apart)
    full = verification.verification_curve(counts_of(scores, genuine), max_points=10**9)
    thin = verification.verification_curve(counts_of(scores, genuine))
    assert full["is_exact"] and thin["is_exact"] == (full["num_corners"] <= 400)
    assert len(thin["roc_far_percent"]) <= 400 and full["num_corners"] == thin["num_corners"]
    points = list(zip(thin["roc_far_percent"], thin["roc_tar_percent"], strict=True))
    everything = list(zip(full["roc_far_percent"], full["roc_tar_percent"], strict=True))
    assert set(points) <= set(everything)
    assert points[0] == (0, 0) and points[-1] == (100, 100)
    for far, tar in everything[:: max(1, len(everything) // 300)]:
        # Along the curve no corner is further than 2 points from a kept one.
        assert min(abs(far - x) + abs(tar - y) for x, y in points) < 2.0


def test_a_thinned_curve_keeps_the_corners_of_the_figures():
    scores, genuine = random_pairs(6, num_pairs=60_000)
    result = verification.verification(scores, genuine, max_points=64)
    curve, figures = result["curve"], result["figures"]
    far, tar = np.array(curve["roc_far_percent"]), np.array(curve["roc_tar_percent"])
    assert len(far) <= 64 and not curve["is_exact"]
    for rate in ("1e-1", "1e-2", "1e-3", "1e-4"):
        assert tar[far <= 100 * float(rate) + 1e-9].max() == pytest.approx(figures[f"tar_at_far_{rate}_percent"])
    crossing = reference.crossing((far / 100).tolist(), (tar / 100).tolist())
    assert 100 * crossing == pytest.approx(figures["pooled_eer_percent"], rel=1e-9)
    highest_impostor, lowest_genuine = scores[~genuine].max(), scores[genuine].min()
    assert tar[far == 0].max() == pytest.approx(100 * np.mean(scores[genuine] > highest_impostor))
    assert far[tar == 100].min() == pytest.approx(100 * np.mean(scores[~genuine] >= lowest_genuine))


def test_det_points_are_roc_points_that_a_logarithmic_axis_takes():
    curve = verification.verification(*random_pairs(7, num_pairs=3000))["curve"]
    roc = zip(curve["roc_far_percent"], curve["roc_tar_percent"], strict=True)
    det = [(far, round(frr, 9)) for far, frr in zip(curve["det_far_percent"], curve["det_frr_percent"], strict=True)]
    assert set(det) == {(far, round(100 - tar, 9)) for far, tar in roc if far > 0 and tar < 100}
    assert det == sorted(det, key=lambda point: (point[0], -point[1]))


@pytest.mark.parametrize("decimals", [None, 2])
def test_the_histogram_is_that_of_numpy_and_counts_every_pair(decimals):
    scores, genuine = random_pairs(8, num_pairs=2000, decimals=decimals)
    scores[:4] = -1, 1, 1, -1
    histogram = verification.verification(scores, genuine)["histogram"]
    edges = np.array(histogram["bin_edges"])
    assert edges[0] == -1 and edges[-1] == 1 and len(edges) == 101
    assert histogram["genuine_counts"] == np.histogram(scores[genuine], edges)[0].tolist()
    assert histogram["impostor_counts"] == np.histogram(scores[~genuine], edges)[0].tolist()
    assert sum(histogram["genuine_counts"]) + sum(histogram["impostor_counts"]) == 2000
    of_no_cosines = verification.verification(50 * scores + 20, genuine)["histogram"]  # of their own range
    assert of_no_cosines["bin_edges"][0] == pytest.approx((50 * scores + 20).min())
    assert sum(of_no_cosines["genuine_counts"]) + sum(of_no_cosines["impostor_counts"]) == len(scores)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_all_pairs_of_a_set_are_verified_like_their_list(seed, ties, monkeypatch):
    embeddings, identities = random_set(seed, ties=ties)
    expected = verification.verification(*plain_pairs(embeddings, identities))
    for numbers_a_block in (2**22, 400, 7):
        monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", numbers_a_block)
        assert verification.all_pairs_verification(embeddings, identities) == expected
        pairs = verification.all_pairs(embeddings, identities)
        assert verification.verification(pairs.scores, pairs.genuine) == expected
        assert np.array_equal(identities[pairs.first] == identities[pairs.second], pairs.genuine)
        assert len(set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))) == 40 * 39 // 2
        assert np.all(pairs.first < pairs.second)


def test_the_size_of_fgnet_is_exact():
    embeddings, identities = random_set(13, num_pictures=1002, num_people=82, size=16)
    counted = verification.all_pairs_verification(embeddings, identities)
    pairs = verification.all_pairs(embeddings, identities)
    assert len(pairs.scores) == 501_501
    assert counted["figures"]["pooled_auc_percent"] == pytest.approx(
        100 * roc_auc_score(pairs.genuine, pairs.scores), rel=1e-12
    )
    assert counted == verification.verification(pairs.scores, pairs.genuine)


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda e, i: e.__setitem__(slice(5, 7), 0), "no direction in 2 of 40 rows, the first is row 5"),
    (lambda e, i: e.__setitem__(4, 1e-200), "no direction in 1 of 40 rows, the first is row 4"),
    (lambda e, i: e.__setitem__(4, 1e200), "no direction in 1 of 40 rows, the first is row 4"),
    (lambda e, i: i.__setitem__(slice(None), 1), "one person for all 40 pictures"),
    (lambda e, i: i.__setitem__(slice(None), np.arange(40)), "no two pictures of one person among 40"),
])  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_a_bad_set_is_refused_in_a_sentence(spoil, message):
    embeddings, identities = random_set(15)
    spoil(embeddings, identities)
    for function in (verification.all_pairs_verification, verification.all_pairs):
        refused(function, embeddings, identities, match=message)


def test_too_many_pairs_to_keep_and_too_few_points_are_refused(monkeypatch):
    embeddings, identities = random_set(16)
    refused(verification.all_pairs_verification, embeddings, identities, max_points=31, match="max_points is 31")
    monkeypatch.setattr(verification, "MAX_PAIRS_KEPT", 700)
    refused(verification.all_pairs, embeddings, identities, match="780 pairs, more than the 700")
    monkeypatch.setattr(verification, "MAX_GENUINE_PAIRS", 5)
    with pytest.raises(UserError, match="pairs of one identity, at most 5 fit in memory"):
        verification.all_pairs_verification(embeddings, identities)
