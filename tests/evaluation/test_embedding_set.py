"""One way through evaluation: an EmbeddingSet is checked, normalised and multiplied once, and measures trust it."""

from functools import cached_property

import numpy as np
import pytest

from evaluation import age_gap, arrays, identification, probes, protocols, verification
from evaluation.arrays import Units, units_of
from evaluation.embeddings.embedding_set import EmbeddingSet
from evaluation.embeddings.extraction import Extracted
from evaluation.scoring import Options, score_identities, score_probe_gallery
from meta import UserError

PEOPLE = np.repeat(np.arange(12), 5)
AGES = np.random.default_rng(0).integers(1, 70, len(PEOPLE))


def made_up(seed: int, people: np.ndarray = PEOPLE) -> EmbeddingSet:
    draw = np.random.default_rng(seed)

    def around(size: int) -> np.ndarray:
        centres = np.random.default_rng(size).normal(size=(people.max() + 1, size))
        return (centres[people] + draw.normal(size=(len(people), size))).astype(np.float32)

    extracted = Extracted(around(8), around(8), None, None, grey_pixels=around(9), age_features=around(7))
    return EmbeddingSet(extracted, str, people, AGES[: len(people)], np.zeros(len(people), np.int64))


@pytest.fixture
def work(monkeypatch) -> dict[str, list]:
    """What is checked, by name, and what is multiplied, by number of images, from here on."""
    seen = {"checked": [], "multiplied": []}
    check, product = arrays.check_finite, Units._all_scores.func
    monkeypatch.setattr(arrays, "check_finite", lambda rows, name: (seen["checked"].append(name), check(rows, name)))
    counted = cached_property(lambda units: (seen["multiplied"].append(len(units)), product(units))[1])
    counted.__set_name__(Units, "_all_scores")
    monkeypatch.setattr(Units, "_all_scores", counted)
    return seen


def test_a_set_with_analysis_is_checked_once_and_multiplied_once_for_each_column(work):
    result, _ = score_identities(made_up(1), Options())
    assert {"verification", "intervals", "cmc", "age_gap", "mate_distance", "leaks"} <= set(result["analysis"])
    assert sorted(work["checked"]) == ["age_features", "grey_pixels", "mirror", "original"]
    assert work["multiplied"] == [len(PEOPLE)] * 4  # both joins, grey pixels, the age branch


def test_probes_meet_their_gallery_once_for_each_column(work, monkeypatch):
    searched = []
    search = identification.search_gallery
    monkeypatch.setattr("evaluation.scoring.search_gallery", lambda *args: (searched.append(1), search(*args))[1])
    probe, gallery = made_up(2, np.arange(12)), made_up(3, np.arange(12))
    result, comparable = score_probe_gallery(probe, gallery, Options(analysis=False))
    assert len(searched) == 3 and work["multiplied"] == []
    assert comparable.hits[0] is not None and len(result["probe_gallery"]) == 4


def test_measures_take_units_as_they_are(monkeypatch):
    rows, ages = np.random.default_rng(4).normal(size=(len(PEOPLE), 6)), AGES
    measures = {
        "leave-one-out": lambda faces: protocols.leave_one_out(faces, PEOPLE),
        "mates": lambda faces: protocols.mates_against_rest(faces, PEOPLE),
        "gallery": lambda faces: protocols.probe_gallery(faces, PEOPLE, faces, PEOPLE),
        "cmc": lambda faces: identification.leave_one_out_cmc(faces, PEOPLE),
        "pairs": lambda faces: verification.all_pairs_verification(faces, PEOPLE),
        "age gap": lambda faces: age_gap.by_age_gap(faces, PEOPLE, ages),
        "distant mates": lambda faces: age_gap.rank1_by_mate_distance(faces, PEOPLE, ages),
        "identity": lambda faces: probes.identity_in_age_embedding(faces, PEOPLE),
    }
    expected = {name: measure(rows) for name, measure in measures.items()}
    units = units_of(rows, "embeddings")

    def refused(*_):
        raise AssertionError("checked or normalised again")

    for module in (arrays, protocols):
        monkeypatch.setattr(module, "unit_rows", refused)
    monkeypatch.setattr(arrays, "check_finite", refused)
    assert {name: measure(units) for name, measure in measures.items()} == expected


def test_a_product_that_is_kept_cannot_be_written_to_and_that_of_blocks_is_the_same(monkeypatch):
    units = units_of(np.random.default_rng(5).normal(size=(9, 4)), "embeddings")
    whole = units.scores(slice(0, 9))
    with pytest.raises(ValueError, match="read-only"):
        whole[0, 0] = 0
    assert units.scores(slice(2, 5), first=2) == pytest.approx(whole[2:5, 2:])
    assert units.pair_scores(np.arange(9), np.arange(9)[::-1]) == pytest.approx(np.diagonal(whole[:, ::-1]))


@pytest.mark.parametrize("name", ["original", "mirror", "grey_pixels"])
def test_what_is_broken_is_named(name):
    faces = made_up(6)
    getattr(faces.extracted, name)[3, 1] = np.nan
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity in 1 of 60 rows, the first is row 3"):
        score_identities(faces, Options(analysis=False))
    faces = made_up(7)
    faces.extracted.original[5] = faces.extracted.mirror[5] = 0  # no embedding
    with pytest.raises(UserError, match="embeddings has no direction in 1 of 60 rows, the first is row 5"):
        score_identities(faces, Options(analysis=False))


def test_a_broken_age_embedding_costs_its_own_figures_only():
    faces = made_up(6)
    faces.extracted.age_features[3, 1] = np.nan
    leaks = score_identities(faces, Options())[0]["analysis"]["leaks"]
    assert "age_features holds NaN" in leaks["age_in_age"]["reason"]
    assert "reason" not in leaks["age_in_identity"]
