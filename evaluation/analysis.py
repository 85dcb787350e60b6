"""What lies beyond the published figures: exact verification with intervals, age gaps, ranks to 100, leaks of age.

Each function takes the embeddings of one model on one benchmark and gives JSON-ready dicts, for results.json and the
report.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from evaluation.age_gap import UNKNOWN, by_age_gap_and_younger_age, rank1_by_mate_distance
from evaluation.identification import (
    Contest,
    leave_one_out_cmc,
    leave_one_out_cmc_chance,
    leave_one_out_contest,
    open_set_identification,
    open_set_split,
    probe_gallery_cmc,
    probe_gallery_cmc_chance,
    probe_gallery_contest,
)
from evaluation.intervals import share_interval, verification_intervals
from evaluation.probes import MEANING, age_probe, identity_in_age_embedding
from evaluation.verification import all_pairs, all_pairs_verification, verification
from meta import UserError

MAX_IMAGES_OF_ALL_PAIRS = 2_000  # beyond, the bootstrap over all pairs would take minutes
MAX_SUBJECTS_BY_AGE = 3_000  # of probes and gallery: pairs grow with the square, 18 million of them take seconds
NUM_ERRORS_NAMED = 12
Analysis = dict[str, Any]


def analyse_identities(
    embeddings: np.ndarray,
    identities: np.ndarray,
    ages: np.ndarray | None,
    age_embeddings: np.ndarray | None,
    names: Callable[[int], str],
    distractors: Iterable[np.ndarray] | None = None,
    seed: int = 0,
    club: Callable[[], dict[str, Any]] | None = None,
    contest: tuple[Contest, np.ndarray] | None = None,
) -> Analysis:
    """A set with several images of each identity (FG-NET): embeddings (N, D), identities (N,), ages (N,) in years.

    `club` gives the model's own estimate of what its two branches share, where it has one; `contest` is that of
    `leave_one_out_contest`, where it is known already.
    """
    contest, probes = contest or leave_one_out_contest(embeddings, identities)
    analysis: Analysis = {"verification": all_pairs_verification(embeddings, identities)}
    if len(embeddings) <= MAX_IMAGES_OF_ALL_PAIRS:
        pairs = all_pairs(embeddings, identities)
        of_pairs = identities[pairs.first], identities[pairs.second]
        analysis["intervals"] = verification_intervals(pairs.scores, pairs.genuine, *of_pairs, seed=seed)
        analysis["errors"] = worst_errors(pairs.scores, pairs.genuine, pairs.first, pairs.second, names, ages)
    analysis["cmc"] = leave_one_out_cmc(embeddings, identities, distractors, contest=contest)
    num_distractors = analysis["cmc"]["num_distractors"]
    analysis["cmc"]["chance"] = leave_one_out_cmc_chance(identities, num_distractors)
    analysis["rank1"] = share_interval(contest.hits, identities[probes], "rank1_percent", seed=seed)
    analysis["open_set"] = told_or_reason(lambda: open_set(embeddings, identities, seed))
    if ages is not None:
        analysis["age_gap"], analysis["younger_age"] = by_age_gap_and_younger_age(embeddings, identities, ages)
        analysis["mate_distance"] = rank1_by_mate_distance(embeddings, identities, ages)
        analysis["leaks"] = leaks(embeddings, identities, ages, age_embeddings, seed)
        if club is not None:
            analysis["leaks"]["club"] = told_or_reason(club)
    return analysis


def open_set(embeddings: np.ndarray, identities: np.ndarray, seed: int) -> dict[str, Any]:
    """Half of the people are known, by one image each; the others are strangers."""
    gallery, probe = open_set_split(identities, seed)
    return open_set_identification(embeddings[probe], identities[probe], embeddings[gallery], identities[gallery])


def leaks(
    embeddings: np.ndarray, identities: np.ndarray, ages: np.ndarray, age_embeddings: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """How well a probe reads the age from either embedding, and identity from that of age."""
    told = {
        "meaning": MEANING,
        "age_in_identity": told_or_reason(lambda: age_probe(embeddings, ages, identities, seed)),
    }
    if age_embeddings is not None:
        told["age_in_age"] = told_or_reason(lambda: age_probe(age_embeddings, ages, identities, seed))
        told["identity_in_age"] = told_or_reason(lambda: identity_in_age_embedding(age_embeddings, identities))
    return told


def analyse_probe_gallery(
    probe: np.ndarray,
    gallery: np.ndarray,
    people: tuple[np.ndarray, np.ndarray],
    ages: tuple[np.ndarray | None, np.ndarray | None],
    names: tuple[Callable[[int], str], Callable[[int], str]],
    seed: int = 0,
    contest: Contest | None = None,
) -> Analysis:
    """Probes (P, D) against a gallery (G, D) (MORPH2): ranks to 100, age gaps over all images of both sides together.

    `people`, `ages` in years and `names` are those of the two sides; `contest` is that of `probe_gallery_contest`,
    where it is known already.
    """
    sides = probe, people[0], gallery, people[1]
    contest = probe_gallery_contest(*sides) if contest is None else contest
    analysis: Analysis = {"cmc": probe_gallery_cmc(*sides, contest=contest)}
    analysis["cmc"]["chance"] = probe_gallery_cmc_chance(*people)
    analysis["rank1"] = share_interval(contest.hits, people[0], "rank1_percent", seed=seed)
    analysis["errors"] = worst_searches(contest, ages, names)
    if ages[0] is not None and ages[1] is not None:
        subjects = np.unique(people[0])
        drawn = np.random.default_rng(seed).permutation(subjects)[:MAX_SUBJECTS_BY_AGE]
        kept = [np.isin(side, drawn) for side in people]
        both = [
            np.concatenate([values[keep] for values, keep in zip(sides, kept, strict=True)])
            for sides in ((probe, gallery), people, ages)
        ]
        analysis["age_gap"], analysis["younger_age"] = by_age_gap_and_younger_age(*both)
        analysis["age_gap"] |= {"num_subjects": len(drawn), "num_subjects_in_all": len(subjects)}
    return analysis


def worst_searches(
    contest: Contest,
    ages: tuple[np.ndarray | None, np.ndarray | None],
    names: tuple[Callable[[int], str], Callable[[int], str]],
) -> dict[str, list[dict[str, Any]]]:
    """The gallery images of others that look most like a probe, and the probes least like their own image."""

    def named(worst_first: np.ndarray, places: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        told = []
        for a in worst_first[:NUM_ERRORS_NAMED].tolist():
            b = int(places[a])
            told.append(_named(names[0](a), names[1](b), scores[a], _age(ages[0], a), _age(ages[1], b)))
        return told

    searched = np.flatnonzero(np.isfinite(contest.best_other))
    most_alike_first = searched[np.argsort(-contest.best_other[searched], kind="stable")]
    return {
        "false_matches": named(most_alike_first, contest.other, contest.best_other),
        "false_non_matches": named(np.argsort(contest.best_mate, kind="stable"), contest.mate, contest.best_mate),
    }


def analyse_pairs(
    scores: np.ndarray, genuine: np.ndarray, first: np.ndarray, second: np.ndarray, names: Callable[[int], str],
    seed: int = 0,
) -> Analysis:  # fmt: skip
    """A list of pairs (CACD-VS, CALFW, .bin): nobody says who the people are, so intervals are over pairs."""
    return {
        "verification": verification(scores, genuine),
        "intervals": verification_intervals(scores, genuine, seed=seed),
        "errors": worst_errors(scores, genuine, first, second, names, None),
    }


def worst_errors(
    scores: np.ndarray,
    genuine: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    names: Callable[[int], str],
    ages: np.ndarray | None,
) -> dict[str, list[dict[str, Any]]]:
    """The impostor pairs that look most alike and the genuine pairs that look least alike, with names and ages."""

    def named(rows: Sequence[int]) -> list[dict[str, Any]]:
        told = []
        for row in rows:
            a, b = int(first[row]), int(second[row])
            told.append(_named(names(a), names(b), scores[row], _age(ages, a), _age(ages, b)))
        return told

    impostors, mates = np.flatnonzero(~genuine), np.flatnonzero(genuine)
    return {
        "false_matches": named(impostors[np.argsort(-scores[impostors], kind="stable")[:NUM_ERRORS_NAMED]]),
        "false_non_matches": named(mates[np.argsort(scores[mates], kind="stable")[:NUM_ERRORS_NAMED]]),
    }


def _named(a: str, b: str, score: float, age_a: int | None, age_b: int | None) -> dict[str, Any]:
    known = {"age_a": age_a, "age_b": age_b}
    return {"name_a": a, "name_b": b, "cosine": round(float(score), 4)} | {
        k: v for k, v in known.items() if v is not None
    }


def _age(ages: np.ndarray | None, i: int) -> int | None:
    return None if ages is None or ages[i] == UNKNOWN else int(ages[i])


def told_or_reason(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures, or why there are none: a set that is too small for one figure has the others all the same."""
    try:
        return measure()
    except UserError as error:
        return {"reason": str(error)}
