"""The evaluation protocols agree with the known-good numbers, with slow plain versions, and with themselves."""

import json
import tracemalloc

import numpy as np
import pytest
import reference
import torch
from scripts import ROOT

from evaluation import arrays, protocols, verification
from meta import UserError

GOLDEN = ROOT / "tests" / "golden"
JOINS = ("concatenate", "add")
INSIGHTFACE_ARGUMENTS = ("a", "a_flipped", "b", "b_flipped", "same")
GOLDEN_TOLERANCE = 1e-5  # relative: those numbers were computed in float32


def golden(name):
    """Arrays and results of one known-good protocol run."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays), json.loads((GOLDEN / f"{name}.json").read_text())


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def random_faces(seed, num_images=24, num_identities=6, size=5, ties=True):
    """Embeddings around one centre per identity; with ties, coarse coordinates and some images copied onto others."""
    rng = np.random.default_rng(seed)
    # Skewed draws make group sizes unequal, and now and then leave a person with one image.
    identities = np.minimum(rng.geometric(0.3, num_images), num_identities) - 1
    identities[:2] = 0  # one pair of mates at least
    embeddings = rng.normal(size=(num_identities, size))[identities] + rng.normal(size=(num_images, size))
    if ties:
        embeddings = np.round(embeddings)
        embeddings[rng.integers(num_images, size=6)] = embeddings[rng.integers(num_images, size=6)]
        embeddings[np.all(embeddings == 0, axis=1)] = 1.0
    return embeddings, identities


def random_pairs(seed, num_pairs=73, decimals=None):
    """Scores in [-1, 1] and labels; with decimals, rounded so that many are equal."""
    rng = np.random.default_rng(seed)
    genuine = rng.random(num_pairs) < rng.uniform(0.2, 0.8)
    genuine[:2] = True, False
    scores = np.clip(rng.normal(size=num_pairs) * 0.5 + 0.4 * genuine, -1, 1)
    return (scores if decimals is None else np.round(scores, decimals)), genuine


def cmc_list(result):
    return [result[f"cmc_percent_{rank}"] for rank in range(1, len(result) + 1)]


@pytest.mark.parametrize("how", JOINS)
def test_fgnet_numbers_are_the_known_good_ones(how):
    arrays, expected = golden("fgnet")
    embeddings = protocols.join_views(arrays["original"], arrays["flipped"], how)
    identities = arrays["identity"]
    cmc = protocols.mates_against_rest(embeddings, identities)
    assert cmc_list(cmc) == pytest.approx(expected[how]["cmc"], rel=GOLDEN_TOLERANCE)
    lopo = protocols.leave_one_out(embeddings, identities)
    assert lopo["rank1_percent"] == pytest.approx(expected[how]["lopo"], rel=GOLDEN_TOLERANCE)
    probabilities = softmax(arrays["age_logits"])
    age = protocols.age_group_error(probabilities[0], probabilities[1], arrays["age_group"])
    assert age["age_group_mae"] == pytest.approx(expected[how]["mae"], rel=GOLDEN_TOLERANCE)


@pytest.mark.parametrize("subjects", [3000, 10000])
@pytest.mark.parametrize("how", JOINS)
def test_morph2_numbers_are_the_known_good_ones(how, subjects):
    arrays, expected = golden("morph2")
    probe, gallery = (
        protocols.join_views(arrays[f"{side}_{subjects}"], arrays[f"{side}_{subjects}_flipped"], how)
        for side in ("probe", "gallery")
    )
    identities = np.arange(len(probe))
    result = protocols.probe_gallery(probe, identities, gallery, identities)
    assert result["rank1_percent"] == pytest.approx(expected[how][f"r{subjects}"], rel=GOLDEN_TOLERANCE)


@pytest.mark.parametrize("how", JOINS)
def test_verification_numbers_are_the_known_good_ones(how):
    arrays, expected = golden("verification")
    a, b = (protocols.join_views(arrays[side], arrays[f"{side}_flipped"], how) for side in ("a", "b"))
    result = protocols.ten_fold_verification(protocols.pair_scores(a, b), arrays["same"])
    for key, golden_key in (("auc_percent", "auc"), ("eer_percent", "eer"), ("accuracy_percent", "acc")):
        assert result[key] == pytest.approx(expected[how][golden_key], rel=GOLDEN_TOLERANCE)


def test_insightface_accuracy_is_the_known_good_one():
    arrays, _ = golden("verification")
    expected = json.loads((GOLDEN / "insightface_accuracy.json").read_text())
    result = protocols.insightface_accuracy(*(arrays[name] for name in INSIGHTFACE_ARGUMENTS))
    assert result == pytest.approx({key: expected[key] for key in result}, rel=1e-9, abs=0)
    assert list(result) == ["accuracy_flip_percent", "accuracy_flip_std_percent"]


@pytest.mark.parametrize("num_pairs", [10, 13, 79])
@pytest.mark.parametrize("block", [2**22, 1], ids=["one-block", "row-by-row"])
def test_insightface_accuracy_is_the_plain_version(num_pairs, block, monkeypatch):
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", block)
    draw = np.random.default_rng(num_pairs)
    genuine = np.arange(num_pairs) % 2 == 0
    views = draw.normal(size=(4, num_pairs, 6)).astype(np.float32) * draw.uniform(1, 30, (4, num_pairs, 1))
    views[2:] += genuine[:, None] * 0.6 * views[:2]
    result = protocols.insightface_accuracy(*views, genuine)
    assert list(result.values()) == pytest.approx(reference.insightface_accuracy(*views, genuine), rel=1e-10)
    of_torch = protocols.insightface_accuracy(*map(torch.from_numpy, views), torch.from_numpy(genuine))
    assert of_torch == result


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_is_the_plain_version(seed, ties, monkeypatch):
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", (2**22, 1, 100)[seed])
    embeddings, identities = random_faces(seed, ties=ties)
    expected = reference.leave_one_out(embeddings, identities)
    assert protocols.leave_one_out(embeddings, identities)["rank1_percent"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("with_distractors", [True, False])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_mates_against_rest_is_the_plain_version(seed, ties, with_distractors, monkeypatch):
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", (2**22, 1, 100)[seed])
    embeddings, identities = random_faces(seed, ties=ties)
    distractors = random_faces(seed + 1000, num_images=17, ties=ties)[0] if with_distractors else None
    if with_distractors and ties:
        distractors[3:6] = 2 * embeddings[:3]  # the same direction: a tie with images of the set
    others = () if distractors is None else distractors
    for max_rank in (7, 50):  # beyond the gallery every mate is found
        result = cmc_list(protocols.mates_against_rest(embeddings, identities, distractors, max_rank))
        assert result == pytest.approx(
            reference.mates_against_rest(embeddings, identities, others, max_rank), rel=1e-12
        )
    assert result[-1] == 100.0


@pytest.mark.parametrize("seed", range(3))
def test_probe_gallery_is_the_plain_version_whatever_the_order_and_the_names(seed, monkeypatch):
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", (2**22, 1, 100)[seed])
    rng = np.random.default_rng(seed)
    gallery = np.round(rng.normal(size=(30, 4)), 0) + 0.5  # coarse, so that some scores tie
    gallery_identities = np.concatenate([np.arange(25), np.arange(5)])  # five people have two gallery images
    probe_identities = rng.integers(25, size=40)
    probe = gallery[probe_identities] + rng.normal(size=(40, 4))
    order = rng.permutation(30)
    gallery, gallery_identities = gallery[order], gallery_identities[order]
    expected = reference.probe_gallery(probe, probe_identities, gallery, gallery_identities)
    numbered = protocols.probe_gallery(probe, probe_identities, gallery, gallery_identities)
    named = protocols.probe_gallery(
        probe, [f"0{i}_" for i in probe_identities], gallery, [f"0{i}_" for i in gallery_identities]
    )
    assert numbered["rank1_percent"] == pytest.approx(expected, rel=1e-12)
    assert named == numbered


def test_small_cases_done_by_hand():
    """Ties answer in order and are the mates; a lone person is a miss or no probe; a probe does not match itself."""
    same = np.ones((3, 4))
    assert protocols.leave_one_out(same, ["a", "b", "a"])["rank1_percent"] == pytest.approx(100 / 3)
    assert protocols.leave_one_out(same, ["a", "a", "b"])["rank1_percent"] == pytest.approx(200 / 3)
    assert protocols.mates_against_rest(same, ["a", "b", "a"], max_rank=1) == {"cmc_percent_1": 100.0}
    assert protocols.probe_gallery(same[:1], ["b"], same[:2], ["a", "b"])["rank1_percent"] == 0.0
    assert protocols.probe_gallery(same[:1], ["b"], same[:2], ["b", "a"])["rank1_percent"] == 100.0
    lone = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert protocols.leave_one_out(lone, ["a", "a", "b"])["rank1_percent"] == pytest.approx(200 / 3)
    assert protocols.mates_against_rest(lone, ["a", "a", "b"])["cmc_percent_1"] == 100.0
    apart = np.array([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.1]])  # both mates are nearer to the other person
    assert protocols.leave_one_out(apart, [0, 0, 1])["rank1_percent"] == 0.0
    assert protocols.mates_against_rest(apart, [0, 0, 1])["cmc_percent_1"] == 0.0


@pytest.mark.parametrize("size", [8, 512, 1024])
def test_copies_of_a_mate_tie_with_it_in_any_block(size, monkeypatch):
    rng = np.random.default_rng(size)
    face = rng.normal(size=(2, size)).astype(np.float32)
    copies = np.repeat(face[1:], 101, axis=0)
    for scores_per_block in (1, size, 7 * size, 2**22):
        monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", scores_per_block)
        # Probe 0 sees its mate tie with every copy, a hit; probe 1 sees copies of itself, a miss.
        assert protocols.mates_against_rest(face, [0, 0], copies)["cmc_percent_1"] == 50.0


def float64_ranks(embeddings, identities, distractors, max_rank=10):
    """CMC percent with every score in float64, or in float32 if that is what comes; every rank counted."""
    scores = embeddings @ embeddings.T
    beyond = embeddings @ distractors.T
    ranks = []
    for p in range(len(embeddings)):
        rest = np.concatenate([scores[p, identities != identities[p]], beyond[p]])
        mates = [i for i in np.flatnonzero(identities == identities[p]) if i != p]
        ranks += [1 + np.count_nonzero(rest > scores[p, i] + arrays.SAME_SCORE) for i in mates]
    return [100 * np.mean(np.array(ranks) <= k) for k in range(1, max_rank + 1)]


def units_of(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def faces_and_near_ties(seed, size=128, nudge=1e-9, copies=6):
    """Unit embeddings, and distractors that are the first image of each person, nudged: equal in float32."""
    rng = np.random.default_rng(seed)
    identities = np.repeat(np.arange(6), 4)
    faces = units_of(rng.normal(size=(6, size))[identities] + 1.2 * rng.normal(size=(24, size)))
    near = np.repeat(faces[::4], copies, axis=0) + nudge * rng.normal(size=(6 * copies, size))
    return faces, identities, units_of(np.concatenate([near, rng.normal(size=(300, size))]))


@pytest.mark.parametrize("nudge", [1e-10, 1e-9, 1e-8, 1e-6])
@pytest.mark.parametrize("seed", range(1))
def test_near_ties_have_the_ranks_of_float64(seed, nudge):
    faces, identities, distractors = faces_and_near_ties(seed, nudge=nudge)
    expected = float64_ranks(faces, identities, distractors)
    assert expected[0] < expected[6] < expected[9]
    assert cmc_list(protocols.mates_against_rest(faces, identities, distractors)) == pytest.approx(expected, rel=1e-12)
    rounded = float64_ranks(faces.astype(np.float32), identities, distractors.astype(np.float32))
    assert nudge == 1e-6 or rounded != pytest.approx(expected, rel=1e-12)  # else this would test nothing


@pytest.mark.parametrize("seed", range(2))
def test_nearest_of_near_ties_is_that_of_float64(seed):
    rng = np.random.default_rng(seed)
    probe = units_of(rng.normal(size=(40, 64)))
    gallery = units_of(np.repeat(probe, 5, axis=0) + 3e-9 * rng.normal(size=(200, 64)) + 0.3 * np.roll(probe, 1, 0)[0])
    scores = probe @ gallery.T
    nearest = [int(np.flatnonzero(row >= row.max() - arrays.SAME_SCORE)[0]) for row in scores]
    assert nearest != np.argmax(probe.astype(np.float32) @ gallery.astype(np.float32).T, axis=1).tolist()
    assert protocols.probe_gallery(probe, nearest, gallery, np.arange(200)) == {"rank1_percent": 100.0}


def test_distractors_come_as_array_tensor_memory_map_list_or_pieces(tmp_path):
    embeddings, identities = random_faces(3, ties=False)
    rows = np.random.default_rng(3).normal(size=(50, 5)).astype(np.float32)
    rows.tofile(tmp_path / "rows.f32")
    expected = protocols.mates_against_rest(embeddings, identities, rows)
    assert expected != protocols.mates_against_rest(embeddings, identities)
    pieces = [rows[:1], rows[1:30], rows[30:]]
    memory_map = np.memmap(tmp_path / "rows.f32", np.float32, "r").reshape(50, 5)
    for kind in (torch.from_numpy(rows), memory_map, rows.tolist(), list(rows), pieces, tuple(pieces), iter(pieces),
                 map(torch.from_numpy, pieces)):  # fmt: skip
        assert protocols.mates_against_rest(embeddings, identities, kind) == expected


def test_pieces_of_distractors_are_never_in_memory_together():
    embeddings, identities = random_faces(0, size=64)
    make = np.random.default_rng(0).standard_normal
    pieces = (make((2_000, 64), np.float32) for _ in range(60))
    tracemalloc.start()
    protocols.mates_against_rest(embeddings, identities, pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2_000 * 64 * 4 / 4  # a fourth of all pieces


@pytest.mark.parametrize("decimals", [None, 2, 1])
@pytest.mark.parametrize("num_pairs", [10, 13, 79])
def test_ten_fold_verification_is_the_plain_version(num_pairs, decimals):
    scores, genuine = random_pairs(num_pairs, num_pairs, decimals)
    result = protocols.ten_fold_verification(scores, genuine)
    assert list(result) == ["accuracy_percent", "auc_percent", "eer_percent"]
    assert list(result.values()) == pytest.approx(reference.ten_fold_verification(scores, genuine), rel=1e-10)


def test_extremes_of_verification():
    genuine = np.tile([1, 1, 0], 20)
    perfect = np.where(genuine == 1, 0.9, -0.9)
    for scores, auc, eer in ((perfect, 100.0, 0.0), (-perfect, 0.0, 100.0), (np.ones(60), 50.0, 50.0)):
        ten_fold = protocols.ten_fold_verification(scores, genuine)
        assert (ten_fold["auc_percent"], ten_fold["eer_percent"]) == pytest.approx((auc, eer))
        exact = verification.pair_list_figures(scores, genuine)
        assert (exact["pooled_auc_percent"], exact["pooled_eer_percent"]) == pytest.approx((auc, eer))
    assert protocols.ten_fold_verification(perfect, genuine)["accuracy_percent"] == 100.0
    assert protocols.ten_fold_verification(np.sort(perfect), np.sort(genuine))["auc_percent"] == 100.0  # one-kind folds
    impostors = np.concatenate([perfect, np.full(100, -0.9)]), np.concatenate([genuine, np.zeros(100, int)])
    assert verification.pair_list_figures(*impostors)["tar_at_far_1e-2_percent"] == 100.0


def test_a_fold_takes_the_first_best_threshold_and_accepts_a_score_at_it():
    genuine = np.tile([True, False], 10)
    scores = np.where(genuine, 0.5, -0.5)
    scores[0] = -0.49  # exactly at the lowest of the thresholds that are perfect on the other nine folds
    assert protocols.ten_fold_verification(scores, genuine)["accuracy_percent"] == 100.0
    scores[0] = -0.5
    assert protocols.ten_fold_verification(scores, genuine)["accuracy_percent"] == 95.0


@pytest.mark.parametrize("how", JOINS)
def test_each_view_counts_the_same_and_the_join_has_length_one_and_the_kind_it_was_given(how):
    original, mirror = np.random.default_rng(0).normal(size=(2, 9, 6))
    joined = protocols.join_views(original, mirror, how)
    assert joined.shape == (9, 12 if how == "concatenate" else 6) and joined.dtype == np.float64
    assert np.linalg.norm(joined, axis=1) == pytest.approx(np.ones(9))
    assert protocols.join_views(100 * original, 0.01 * mirror, how) == pytest.approx(joined)
    for dtype in (np.float16, np.float32):
        assert protocols.join_views(original.astype(dtype), mirror.astype(dtype), how).dtype == np.float32
    for name, kept in (("bfloat16", torch.float32), ("float64", torch.float64)):
        tensor = torch.tensor(original, dtype=getattr(torch, name), requires_grad=True)
        joined = protocols.join_views(tensor, tensor, how)
        assert joined.dtype == kept and not joined.requires_grad


def test_pair_scores_are_cosines(monkeypatch):
    monkeypatch.setattr(arrays, "SCORES_PER_BLOCK", 7)
    a, b = np.random.default_rng(2).normal(size=(2, 11, 5))
    expected = [reference.cosine(x, y) for x, y in zip(a, b, strict=True)]
    assert protocols.pair_scores(a, b) == pytest.approx(expected)
    assert protocols.pair_scores(3 * a, a) == pytest.approx(np.ones(11))
    assert protocols.pair_scores(a, 0 * b).tolist() == [0.0] * 11


def test_age_group_error_is_in_groups_and_averages_both_views():
    original = np.array([[0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    mirror = np.array([[0.1, 0.9, 0.0], [1.0, 0.0, 0.0]])  # means: group 1; groups 0 and 2 tie, the first answers
    result = protocols.age_group_error(original, mirror, [1, 2])
    assert result == {"age_group_mae": 1.0, "age_group_accuracy_percent": 50.0}


def test_torch_and_numpy_agree():
    arrays, _ = golden("fgnet")
    as_torch = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def every_result(original, flipped, identity):
        joined = protocols.join_views(original, flipped, "concatenate")
        return [
            joined.tolist(),
            protocols.leave_one_out(joined, identity),
            protocols.mates_against_rest(original, identity, flipped[:50]),
            protocols.probe_gallery(joined, identity, joined, identity),
        ]

    of_torch, of_numpy = (every_result(*(of[name] for name in ("original", "flipped", "identity")))
                          for of in (as_torch, arrays))  # fmt: skip
    assert of_torch == of_numpy
    scores, genuine = random_pairs(0)
    for protocol in (protocols.ten_fold_verification, verification.pair_list_figures):
        assert protocol(torch.from_numpy(scores), torch.from_numpy(genuine)) == protocol(scores, genuine)


def test_every_result_is_a_flat_dict_of_floats():
    embeddings, identities = random_faces(0)
    for result in (
        protocols.leave_one_out(embeddings, identities), protocols.mates_against_rest(embeddings, identities),
        protocols.probe_gallery(embeddings, identities, embeddings, identities),
        protocols.ten_fold_verification(*random_pairs(0)),
        protocols.insightface_accuracy(*[embeddings] * 4, identities == 0),
        protocols.age_group_error(softmax(embeddings), softmax(embeddings), np.zeros(24, dtype=int)),
        protocols.leave_one_out_chance(identities), protocols.mates_against_rest_chance(identities),
        protocols.probe_gallery_chance(identities, identities),
    ):  # fmt: skip
        assert all(type(value) is float for value in result.values())


def test_chance_is_what_random_embeddings_get():
    rng = np.random.default_rng(0)
    identities = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    runs = rng.normal(size=(300, 21, 64))  # many dimensions: scores of different pairs are nearly independent
    extra = rng.normal(size=(300, 9, 64))
    measured = np.mean([protocols.leave_one_out(run, identities)["rank1_percent"] for run in runs])
    assert measured == pytest.approx(protocols.leave_one_out_chance(identities)["rank1_percent"], abs=1.5)
    pairs = zip(runs, extra, strict=True)
    cmc_runs = [cmc_list(protocols.mates_against_rest(run, identities, others)) for run, others in pairs]
    expected = cmc_list(protocols.mates_against_rest_chance(identities, num_distractors=9))
    assert np.mean(cmc_runs, axis=0) == pytest.approx(expected, abs=1.5)


def test_chance_in_small_cases_done_by_hand():
    assert protocols.leave_one_out_chance(["a", "a", "b"])["rank1_percent"] == pytest.approx(100 / 3)
    assert cmc_list(protocols.mates_against_rest_chance(["a", "a", "b"], max_rank=3)) == [50.0, 100.0, 100.0]
    assert protocols.mates_against_rest_chance([5, 5, 6], num_distractors=2, max_rank=1) == {"cmc_percent_1": 25.0}
    assert protocols.probe_gallery_chance([1, 2], np.arange(50)) == {"rank1_percent": 2.0}
    assert protocols.probe_gallery_chance(["b"], ["a", "b", "b", "c"]) == {"rank1_percent": 50.0}


FACES = np.eye(4, 3) + 0.1
NOT_FINITE = np.where(np.arange(12).reshape(4, 3) == 7, np.nan, FACES)
PEOPLE = [0, 0, 1, 1]
SCORES, GENUINE = np.linspace(0, 1, 12), np.tile([0, 1], 6)

ERRORS = {
    "unknown join": (protocols.join_views, (FACES, FACES, "mix"), '"concatenate" or "add"'),
    "views of different shape": (protocols.join_views, (FACES, FACES[:2], "add"), r"\(4, 3\).*\(2, 3\)"),
    "flat views": (protocols.join_views, (FACES[0], FACES[0], "add"), r"original has shape \(3,\)"),
    "integer embeddings": (protocols.leave_one_out, (FACES.astype(int), PEOPLE), "int64 values"),
    "integer tensor": (protocols.leave_one_out, (torch.ones(4, 3, dtype=torch.int32), PEOPLE), "int32 values"),
    "ragged embeddings": (protocols.leave_one_out, ([[1.0], [1.0, 2.0]], [0, 0]), "same length"),
    "flat embeddings": (protocols.leave_one_out, (FACES[0], PEOPLE), r"shape \(3,\)"),
    "no embeddings": (protocols.leave_one_out, (FACES[:0], []), r"shape \(0, 3\)"),
    "embeddings of no numbers": (protocols.leave_one_out, (FACES[:, :0], PEOPLE), r"shape \(4, 0\)"),
    "NaN": (protocols.leave_one_out, (NOT_FINITE, PEOPLE), "1 of 4 rows, the first is row 2"),
    "infinity": (protocols.pair_scores, (FACES, np.full((4, 3), np.inf)), "NaN or infinity"),
    "one image": (protocols.leave_one_out, (FACES[:1], [0]), "two images"),
    "too few identities": (protocols.leave_one_out, (FACES, [0, 0, 1]), "3 entries for 4 images"),
    "identities in a table": (protocols.leave_one_out, (FACES, [[0], [0], [1], [1]]), "one identity per image"),
    "fractional identities": (protocols.leave_one_out, (FACES, [0.0, 0.0, 1.0, 1.5]), "whole numbers or strings"),
    "nobody has a mate": (protocols.mates_against_rest, (FACES, [0, 1, 2, 3]), "no two images"),
    "max_rank 0": (protocols.mates_against_rest, (FACES, PEOPLE, None, 0), "max_rank is 0"),
    "distractors of another size": (protocols.mates_against_rest, (FACES, PEOPLE, FACES[:, :2]), "3 numbers .* has 2"),
    "NaN distractors": (protocols.mates_against_rest, (FACES, PEOPLE, NOT_FINITE), "distractors holds NaN"),
    "a piece of another size": (protocols.mates_against_rest, (FACES, PEOPLE, [FACES, FACES[:, :2]]), "2 .*has 2"),
    "a NaN in a piece": (protocols.mates_against_rest, (FACES, PEOPLE, iter([FACES, NOT_FINITE])),
                         "piece 2 of distractors holds NaN or infinity in 1 of 4 rows, the first is row 2"),
    "no piece": (protocols.mates_against_rest, (FACES, PEOPLE, iter([])), "holds no piece"),
    "an empty list of distractors": (protocols.mates_against_rest, (FACES, PEOPLE, []), "distractors has shape"),
    "a name for distractors": (protocols.mates_against_rest, (FACES, PEOPLE, "faces.npy"), "piece 1 of distractors"),
    "a number of distractors": (protocols.mates_against_rest, (FACES, PEOPLE, 1000), "distractors has shape"),
    "no distractors": (protocols.mates_against_rest, (FACES, PEOPLE, FACES[:0]), "distractors has shape"),
    "gallery lacks people": (protocols.probe_gallery, (FACES, [0, 7, 8, 9], FACES, PEOPLE), r"lacks 3 .*\(7, 8, 9\)"),
    "gallery lacks many": (protocols.probe_gallery, (np.ones((9, 3)), list("abcdefghi"), FACES, list("ayxz")),
                           r"lacks 8 .*\(b, c, d, e, f, \.\.\.\)"),
    "numbers against names": (protocols.probe_gallery, (FACES, PEOPLE, FACES, list("0011")), "same way on both"),
    "gallery of another size": (protocols.probe_gallery, (FACES, PEOPLE, FACES[:, :2], PEOPLE), "same join"),
    "nine pairs": (protocols.ten_fold_verification, (SCORES[:9], GENUINE[:9]), "9 pairs"),
    "no impostors": (protocols.ten_fold_verification, (SCORES, np.ones(12)), "no impostor pair among 12"),
    "nine pairs for InsightFace": (protocols.insightface_accuracy, (*[np.ones((9, 3))] * 4, GENUINE[:9]), "9 pairs"),
    "sides of two sizes": (protocols.insightface_accuracy, (*[np.ones((12, 3))] * 2, *[np.ones((12, 2))] * 2, GENUINE),
                           r"original_a has shape \(12, 3\) and original_b \(12, 2\)"),
    "NaN in a mirror": (protocols.insightface_accuracy, (FACES, NOT_FINITE, FACES, FACES, PEOPLE), "mirror_a .* NaN"),
    "no genuine": (verification.pair_list_figures, (SCORES, np.zeros(12, dtype=bool)), "no genuine pair among 12"),
    "no pairs": (verification.pair_list_figures, ([], []), r"shape \(0,\)"),
    "labels too short": (verification.pair_list_figures, (SCORES, GENUINE[:5]), r"\(12,\) and genuine \(5,\)"),
    "a table of scores": (verification.pair_list_figures, (SCORES[:, None], GENUINE[:, None]), "both"),
    "NaN score": (verification.pair_list_figures, (np.where(SCORES < 0.5, SCORES, np.nan), GENUINE), "not finite"),
    "labels beyond 0 and 1": (verification.pair_list_figures, (SCORES, GENUINE * 2), "other than 0 and 1"),
    "logits for probabilities": (protocols.age_group_error, (FACES * 9, FACES * 9, PEOPLE), "softmax"),
    "years for groups": (protocols.age_group_error, (softmax(FACES), softmax(FACES), [1, 2, 40, 1]), "not years"),
    "too few groups": (protocols.age_group_error, (softmax(FACES), softmax(FACES), [1, 2]), "each of the 4 images"),
    "negative distractors": (protocols.mates_against_rest_chance, (PEOPLE, -1), "num_distractors is -1"),
    "chance of one image": (protocols.leave_one_out_chance, ([3],), "two images"),
    "chance of other people": (protocols.probe_gallery_chance, (["a"], ["b"]), "lacks 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_a_users_mistake_is_one_sentence_that_says_what_and_where(case):
    protocol, arguments, message = ERRORS[case]
    with pytest.raises(UserError, match=message) as raised:
        protocol(*arguments)
    text = str(raised.value)
    assert "\n" not in text
    assert text.endswith(".")
