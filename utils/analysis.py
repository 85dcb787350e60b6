"""What lies beyond the published figures: exact verification with intervals, age gaps, ranks to 100, leaks of age.

Each function takes the embeddings of one model on one benchmark and gives JSON-ready dicts, for results.json and the
report.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from meta import UserError
from utils.age_gap import by_age_gap, by_younger_age, rank1_by_mate_distance
from utils.identification import (
    leave_one_out_cmc,
    open_set_identification,
    open_set_split,
    probe_gallery_cmc,
)
from utils.intervals import verification_intervals
from utils.leaks import MEANING, age_probe, identity_in_age_embedding
from utils.verification import all_pairs, all_pairs_verification, verification

MAX_IMAGES_OF_ALL_PAIRS = 2_000  # beyond, the bootstrap over all pairs would take minutes
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
) -> Analysis:
    """A set with several images of each identity (FG-NET): embeddings (N, D), identities (N,), ages (N,) in years."""
    analysis: Analysis = {"verification": all_pairs_verification(embeddings, identities)}
    if len(embeddings) <= MAX_IMAGES_OF_ALL_PAIRS:
        pairs = all_pairs(embeddings, identities)
        of_pairs = identities[pairs.first], identities[pairs.second]
        analysis["intervals"] = verification_intervals(pairs.scores, pairs.genuine, *of_pairs, seed=seed)
        analysis["errors"] = worst_errors(pairs.scores, pairs.genuine, pairs.first, pairs.second, names, ages)
    analysis["cmc"] = leave_one_out_cmc(embeddings, identities, distractors)
    analysis["open_set"] = told_or_reason(lambda: open_set(embeddings, identities, seed))
    if ages is not None:
        analysis["age_gap"] = by_age_gap(embeddings, identities, ages)
        analysis["younger_age"] = by_younger_age(embeddings, identities, ages)
        analysis["mate_distance"] = rank1_by_mate_distance(embeddings, identities, ages)
        analysis["leaks"] = leaks(embeddings, identities, ages, age_embeddings, seed)
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
    probe: np.ndarray, probe_identities: np.ndarray, gallery: np.ndarray, gallery_identities: np.ndarray
) -> Analysis:
    """Probes against a gallery (MORPH2): ranks to 100."""
    return {"cmc": probe_gallery_cmc(probe, probe_identities, gallery, gallery_identities)}


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
            pair = {"name_a": names(a), "name_b": names(b), "cosine": round(float(scores[row]), 4)}
            if ages is not None:
                pair |= {"age_a": int(ages[a]), "age_b": int(ages[b])}
            told.append(pair)
        return told

    impostors, mates = np.flatnonzero(~genuine), np.flatnonzero(genuine)
    return {
        "false_matches": named(impostors[np.argsort(-scores[impostors], kind="stable")[:NUM_ERRORS_NAMED]]),
        "false_non_matches": named(mates[np.argsort(scores[mates], kind="stable")[:NUM_ERRORS_NAMED]]),
    }


def told_or_reason(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures, or why there are none: a set that is too small for one figure has the others all the same."""
    try:
        return measure()
    except UserError as error:
        return {"reason": str(error)}
