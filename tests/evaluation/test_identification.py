"""evaluation/identification.py: CMC and open-set figures agree with slow plain versions, each other and chance."""

import math

import numpy as np
import pytest
import reference
import torch

from evaluation import arrays, identification
from meta import UserError

TIE = 1e-12


def faces(seed, num_images=26, num_identities=7, size=5, ties=True, spread=1.0):
    """Embeddings around one centre a person, some people with one image; with ties, coarse and copied ones."""
    rng = np.random.default_rng(seed)
    identities = np.minimum(rng.geometric(0.25, num_images), num_identities) - 1
    identities[:4] = 0, 0, 1, 1
    rows = rng.normal(size=(num_identities, size))[identities] + spread * rng.normal(size=(num_images, size))
    if ties:
        rows = np.round(rows)
        rows[rng.integers(num_images, size=6)] = rows[rng.integers(num_images, size=6)]
        rows[np.all(rows == 0, axis=1)] = 1.0
    return rows, identities


def plain_rank(probe, mates, others):
    """1 + the number of others that score as high as the best mate."""
    best = max(reference.cosine(probe, mate) for mate in mates)
    return 1 + sum(reference.cosine(probe, other) >= best - TIE for other in others)


def plain_cmc(ranks, length):
    return [100 * sum(rank <= k for rank in ranks) / len(ranks) for k in range(1, length + 1)]


def plain_open_set(probe, probe_identities, gallery, gallery_identities, distractors, one_in):
    """DIR in percent, by trying every score of a non-mated probe as the threshold; None where they are too few."""
    non_mated, known = [], []
    for embedding, identity in zip(probe, probe_identities, strict=True):
        scores = [reference.cosine(embedding, row) for row in gallery]
        rest = [reference.cosine(embedding, row) for row in distractors]
        if identity not in gallery_identities:
            non_mated.append(max(scores + rest))
            continue
        best = max(s for s, name in zip(scores, gallery_identities, strict=True) if name == identity)
        rest += [s for s, name in zip(scores, gallery_identities, strict=True) if name != identity]
        known.append((best, all(best > other + TIE for other in rest)))
    if len(non_mated) < one_in:
        return None
    shares = []
    for threshold in non_mated:
        if sum(score > threshold + TIE for score in non_mated) * one_in <= len(non_mated):
            shares.append(sum(first and best > threshold + TIE for best, first in known) / len(known))
    return 100 * max(shares)


@pytest.mark.parametrize("with_distractors", [True, False])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_leave_one_out_cmc_is_the_plain_version(seed, ties, with_distractors, monkeypatch):
    rows, identities = faces(seed, ties=ties)
    extra = faces(seed + 100, num_images=11, ties=ties)[0] if with_distractors else None
    if with_distractors and ties:
        extra[:3] = 2 * rows[:3]  # the same direction: a tie with a mate
    ranks = []
    for i, probe in enumerate(rows):
        mates = [rows[j] for j in range(len(rows)) if j != i and identities[j] == identities[i]]
        others = [rows[j] for j in range(len(rows)) if identities[j] != identities[i]]
        if mates:
            ranks.append(plain_rank(probe, mates, others + ([] if extra is None else list(extra))))
    result = identification.leave_one_out_cmc(rows, identities, extra)
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", 7)
    pieces = None if extra is None else (torch.tensor(extra[i : i + 5]) for i in range(0, 11, 5))
    assert identification.leave_one_out_cmc(torch.tensor(rows), identities, pieces) == result
    num_candidates = 25 + (11 if with_distractors else 0)
    assert result["cmc_percent"] == pytest.approx(plain_cmc(ranks, num_candidates), rel=1e-12)
    assert (result["num_probes"], result["num_probes_without_mate"]) == (len(ranks), 26 - len(ranks))
    assert (result["num_gallery"], result["num_distractors"]) == (25, num_candidates - 25)


@pytest.mark.parametrize("seed", range(2))
def test_probe_gallery_cmc_is_the_plain_version_with_several_images_a_person(seed, monkeypatch):
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", (2**22, 7)[seed])
    gallery, gallery_identities = faces(seed, ties=seed % 2 == 0)
    probe, probe_identities = faces(seed + 50, num_images=17, ties=seed % 2 == 0)
    is_there = np.isin(probe_identities, gallery_identities)
    probe, probe_identities = probe[is_there], probe_identities[is_there]
    ranks = [
        plain_rank(p, gallery[gallery_identities == name], gallery[gallery_identities != name])
        for p, name in zip(probe, probe_identities, strict=True)
    ]
    result = identification.probe_gallery_cmc(probe, probe_identities, gallery, gallery_identities, max_rank=9)
    assert result["cmc_percent"] == pytest.approx(plain_cmc(ranks, 9), rel=1e-12)
    named = identification.probe_gallery_cmc(
        probe, [f"p{i}" for i in probe_identities], gallery, [f"p{i}" for i in gallery_identities], max_rank=9
    )
    assert named == result


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_open_set_figures_are_the_plain_version(seed, ties, monkeypatch):
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", (2**22, 7)[seed])
    probe, probe_identities = faces(seed, num_images=60, num_identities=12, ties=ties, spread=0.4)
    gallery, gallery_identities = faces(seed, num_images=20, num_identities=12, ties=ties, spread=0.4)
    keep = gallery_identities < 2
    gallery, gallery_identities = gallery[keep], gallery_identities[keep]
    extra = faces(seed + 9, num_images=7, ties=ties)[0]
    sets = probe, probe_identities, gallery, gallery_identities
    for distractors in ((), extra):
        result = identification.open_set_identification(*sets, extra if len(distractors) else None)
        for rate, one_in in (("1e-1", 10), ("1e-2", 100)):
            expected = plain_open_set(*sets[:3], gallery_identities.tolist(), distractors, one_in)
            if expected is None:  # more non-mates are needed than there are
                assert result[f"dir_at_far_{rate}_percent"] is result[f"threshold_at_far_{rate}_cosine"] is None
                assert result[f"false_alarms_allowed_at_far_{rate}"] == 0
            else:
                assert result[f"dir_at_far_{rate}_percent"] == pytest.approx(expected, rel=1e-12)
        assert result["num_known_probes"] + result["num_strangers"] == 60
        assert result["num_distractors"] == len(distractors)


def test_a_threshold_lets_no_more_non_mates_pass_than_allowed_and_a_tie_does_not_pass():
    angle = np.linspace(0.1, 1.5, 20)  # cosines of twenty other people to the one picture in the gallery
    others = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    known = np.array([[1.0, 0.0], others[2], others[1] + [1e-9, 0], others[19]])
    probe, names = np.concatenate([others, known]), ["x"] * 20 + ["a"] * 4
    result = identification.open_set_identification(probe, names, np.array([[2.0, 0.0]]), ["a"])
    assert result["false_alarms_allowed_at_far_1e-1"] == 2
    assert result["threshold_at_far_1e-1_cosine"] == pytest.approx(math.cos(angle[2]), abs=1e-15)
    assert result["dir_at_far_1e-1_percent"] == 50.0  # the second known probe ties with the third of them
    assert result["rank1_percent"] == 100.0


def test_a_split_is_that_of_its_seed_and_keeps_people_apart():
    identities = np.repeat(np.arange(40), np.arange(40) % 5 + 1)
    splits = [identification.open_set_split(identities, seed) for seed in (0, 0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(splits[0], splits[1], strict=True))
    assert not np.array_equal(splits[0][0], splits[2][0])
    gallery, probes = splits[0]
    assert len(gallery) == 20 == len(np.unique(identities[gallery]))
    assert sorted([*gallery, *probes]) == list(range(len(identities)))
    assert np.array_equal(np.unique(identities[gallery]), np.unique(identities[identification.known_rows(identities)]))
    names = identification.open_set_split([f"{i:03}" for i in identities], 0)
    assert all(np.array_equal(a, b) for a, b in zip(splits[0], names, strict=True))
    chosen = {int(identification.open_set_split([0, 0, 0, 1, 1, 1], seed)[0][0]) for seed in range(40)}
    assert chosen == {0, 1, 2, 3, 4, 5}  # any image may be the one in the gallery


def test_chance_is_what_random_embeddings_get():
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(5), [1, 2, 3, 3, 4])
    extra, runs = rng.normal(size=(4, 64)), rng.normal(size=(500, 13, 64))
    expected = identification.leave_one_out_cmc_chance(identities, num_distractors=4)["cmc_percent"]
    assert len(expected) == 16 and expected[-1] == 100.0
    found = [identification.leave_one_out_cmc(run, identities, extra)["cmc_percent"] for run in runs]
    assert np.mean(found, axis=0) == pytest.approx(expected, abs=2.0)
    names = identities[[1, 2, 3, 5, 6, 8, 9]]
    expected = identification.probe_gallery_cmc_chance(identities[1:], names)["cmc_percent"]
    found = [identification.probe_gallery_cmc(run[1:], identities[1:], rng.normal(size=(7, 64)), names)["cmc_percent"]
             for run in runs]  # fmt: skip
    assert np.mean(found, axis=0) == pytest.approx(expected, abs=2.0)


def test_open_set_chance_is_what_random_embeddings_get():
    rng = np.random.default_rng(1)
    names, gallery = np.repeat([0, 1, 2, 3], [30, 30, 200, 200]), np.array([0, 0, 1])
    expected = identification.open_set_chance(names, gallery)
    assert expected["rank1_percent"] == 50.0 and expected["dir_at_far_1e-1_percent"] == 5.0
    measure, draw = identification.open_set_identification, rng.normal
    found = [measure(draw(size=(460, 96)), names, draw(size=(3, 96)), gallery) for _ in range(60)]
    for key in expected:
        if found[0][key] is not None:
            assert np.mean([result[key] for result in found]) == pytest.approx(expected[key], abs=2.0)


def test_distractors_of_length_zero_are_left_out_and_counted():
    rows, identities = faces(4)
    extra = np.concatenate([np.zeros((3, 5)), faces(40)[0], np.zeros((1, 5))])
    result = identification.leave_one_out_cmc(rows, identities, extra)
    assert (result["num_distractors"], result["num_distractors_left_out"]) == (26, 4)
    assert result["cmc_percent"] == identification.leave_one_out_cmc(rows, identities, extra[3:-1])["cmc_percent"]


ROWS = np.eye(4, 3) + 0.1
ZERO = ROWS * [[1], [1], [0], [1]]
PEOPLE = [0, 0, 1, 1]
ERRORS = {
    "zero": (identification.leave_one_out_cmc, (ZERO, PEOPLE), "no direction in 1 of 4 rows, the first is row 2"),
    "zero in the gallery": (identification.probe_gallery_cmc, (ROWS, PEOPLE, ZERO, PEOPLE), "gallery has no direction"),
    "only zero distractors": (identification.leave_one_out_cmc, (ROWS, PEOPLE, 0 * ROWS), "no embedding of a length"),
    "nobody has a mate": (identification.leave_one_out_cmc, (ROWS, [0, 1, 2, 3]), "no two images"),
    "rank 0": (identification.leave_one_out_cmc, (ROWS, PEOPLE, None, 0), "max_rank is 0"),
    "gallery lacks people": (identification.probe_gallery_cmc, (ROWS, [0, 7, 8, 9], ROWS, PEOPLE), "lacks 3"),
    "no non-mates": (
        identification.open_set_identification,
        (ROWS, PEOPLE, ROWS, PEOPLE),
        "no people whom the gallery",
    ),
    "no mates": (identification.open_set_identification, (ROWS, PEOPLE, ROWS, [5, 5, 6, 6]), "no people of"),
    "numbers against names": (identification.open_set_identification, (ROWS, PEOPLE, ROWS, list("0011")), "same way"),
    "one person": (identification.known_rows, ([3, 3],), "names one person"),
    "a share beyond": (identification.known_rows, (PEOPLE, 0, 120), "known_percent is 120"),
    "no second image": (identification.open_set_split, ([0, 1, 2, 3],), "no known person with a second image"),
    "negative distractors": (identification.leave_one_out_cmc_chance, (PEOPLE, -1), "num_distractors is -1"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_users_mistake_is_one_sentence(case):
    function, arguments, words = ERRORS[case]
    with pytest.raises(UserError, match=words) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")
