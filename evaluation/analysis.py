"""What lies beyond the published figures: exact verification with intervals, age gaps, ranks to 100, probes of age.

Each function takes the embeddings of one model on one benchmark and returns JSON-ready dicts, for results.json and the
report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from evaluation.age_gap import UNKNOWN, by_age_gap_and_younger_age, rank1_by_mate_distance
from evaluation.arrays import Units
from evaluation.embeddings.embedding_set import ANALYSED_JOIN
from evaluation.identification import (
    SearchResult,
    cmc_of,
    leave_one_out_cmc_chance,
    open_set_identification,
    open_set_split,
    probe_gallery_cmc_chance,
)
from evaluation.intervals import share_interval, verification_intervals
from evaluation.pairs.false_matches import false_matches_by_age
from evaluation.probes import MEANING, age_probe, club_estimate, identity_in_age_embedding
from evaluation.verification import AllPairs, all_pairs_verification, verification
from meta import UserError

if TYPE_CHECKING:
    from evaluation.embeddings.embedding_set import EmbeddingSet
    from evaluation.probes import MutualInformation

MAX_SUBJECTS_BY_AGE = 3_000  # of probes and gallery: pairs grow with the square, 18 million of them take seconds
MAX_PICTURES_PROBED = 2_000  # of people whom nobody names: probes of so many take some 15 seconds
NUM_ERRORS_NAMED = 12
Analysis: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What to measure beyond the published figures."""

    analysis: bool = True
    distractors: Iterable[np.ndarray] | None = None
    seed: int = 0
    mutual_information: MutualInformation | None = None  # of the model's own CLUB


def analyse_identities(
    faces: EmbeddingSet, search: SearchResult, pairs: AllPairs | None, options: Options, grey: Units | None = None
) -> Analysis:
    """A set with several images of each identity (FG-NET).

    `search` is that of each of the N images among the others, `pairs` are all pairs where they are few enough, `grey`
    are grey pixels as a baseline of false matches.
    """
    embeddings, identities, ages, seed = faces.embeddings, faces.identities, faces.ages, options.seed
    probes = np.flatnonzero(np.isfinite(search.best_mate))
    search = search.of(probes)
    analysis: Analysis = {}
    if pairs is None:
        analysis["verification"] = all_pairs_verification(embeddings, identities)
    else:
        sides = identities[pairs.first], identities[pairs.second]
        analysis["verification"] = verification(pairs.scores, pairs.genuine)
        analysis["intervals"] = verification_intervals(pairs.scores, pairs.genuine, *sides, seed=seed)
        analysis["errors"] = worst_errors(*pairs, faces.name, ages)
    analysis["cmc"] = cmc_of(search, embeddings[probes], len(faces) - 1, options.distractors)
    analysis["cmc"]["num_probes_without_mate"] = len(faces) - len(probes)
    analysis["cmc"]["chance"] = leave_one_out_cmc_chance(identities, analysis["cmc"]["num_distractors"])
    analysis["rank1"] = share_interval(search.hits, identities[probes], "rank1_percent", seed=seed)
    analysis["open_set"] = figures_or_reason(lambda: open_set(embeddings, identities, seed))
    if ages is not None:
        analysis["age_gap"], analysis["younger_age"] = by_age_gap_and_younger_age(embeddings, identities, ages)
        analysis["mate_distance"] = rank1_by_mate_distance(embeddings, identities, ages)
        analysis["false_matches_by_age"] = {
            column: figures_or_reason(lambda units=units: false_matches_by_age(units, ages, identities, seed)[0])
            for column, units in {ANALYSED_JOIN: embeddings, "grey_pixels": grey}.items()
            if units is not None
        }
        analysis["leaks"] = age_leaks(faces, seed)
        if options.mutual_information is not None and faces.extracted.age_features is not None:
            features = faces.extracted.age_features, faces.extracted.original
            analysis["leaks"]["club"] = figures_or_reason(
                lambda: club_estimate(options.mutual_information, *features, seed)
            )
    return analysis


def open_set(embeddings: Units, identities: np.ndarray, seed: int) -> dict[str, Any]:
    """Half of the people are in the gallery, by one image each; probes of the others are non-mated."""
    gallery, probe = open_set_split(identities, seed)
    return open_set_identification(embeddings[probe], identities[probe], embeddings[gallery], identities[gallery])


def age_leaks(faces: EmbeddingSet, seed: int) -> dict[str, Any]:
    """How well probes read the age from either embedding, and identity from that of age."""
    ages, identities = faces.ages, faces.identities
    figures = {
        "meaning": MEANING,
        "age_in_identity": figures_or_reason(lambda: age_probe(faces.embeddings, ages, identities, seed)),
    }
    if faces.extracted.age_features is not None:
        figures["age_in_age"] = figures_or_reason(
            lambda: age_probe(faces.age_embeddings, ages, identities, seed, linear_only=True)
        )
        figures["identity_in_age"] = figures_or_reason(
            lambda: identity_in_age_embedding(faces.age_embeddings, identities)
        )
    return figures


def analyse_probe_gallery(
    probe: EmbeddingSet, gallery: EmbeddingSet, search: SearchResult, options: Options
) -> Analysis:
    """Probes against a gallery (MORPH2): ranks to 100, age gaps over all images of both sides together.

    `search` is that of the probes in the gallery.
    """
    analysis: Analysis = {"cmc": cmc_of(search, probe.embeddings, len(gallery))}
    analysis["cmc"]["chance"] = probe_gallery_cmc_chance(probe.identities, gallery.identities)
    analysis["rank1"] = share_interval(search.hits, probe.identities, "rank1_percent", seed=options.seed)
    analysis["errors"] = worst_searches(search, (probe.ages, gallery.ages), (probe.name, gallery.name))
    if probe.ages is not None and gallery.ages is not None:
        subjects = np.unique(probe.identities)
        drawn = np.random.default_rng(options.seed).permutation(subjects)[:MAX_SUBJECTS_BY_AGE]
        kept = [(side, np.isin(side.identities, drawn)) for side in (probe, gallery)]
        rows = Units(np.concatenate([side.embeddings.rows[keep] for side, keep in kept]))
        people = np.concatenate([side.identities[keep] for side, keep in kept])
        ages = np.concatenate([side.ages[keep] for side, keep in kept])
        analysis["age_gap"], analysis["younger_age"] = by_age_gap_and_younger_age(rows, people, ages)
        analysis["false_matches_by_age"] = {
            ANALYSED_JOIN: figures_or_reason(lambda: false_matches_by_age(rows, ages, people, options.seed)[0])
        }
        analysis["age_gap"] |= {"num_subjects": len(drawn), "num_subjects_in_all": len(subjects)}
    return analysis


def analyse_pictures(faces: EmbeddingSet, seed: int) -> Analysis:
    """Pictures of known age, each a person of its own: false matches by age, those most alike, probes of age."""
    of_join, most_alike = false_matches_by_age(faces.embeddings, faces.ages, seed=seed)
    baselines = {
        column: figures_or_reason(lambda units=units: false_matches_by_age(units, faces.ages, seed=seed)[0])
        for column, units in faces.columns(())
    }
    errors = [
        _named(faces.name(a), faces.name(b), score, _age(faces.ages, a), _age(faces.ages, b))
        for score, a, b in most_alike
    ]
    drawn = np.sort(np.random.default_rng(seed).permutation(len(faces))[:MAX_PICTURES_PROBED])
    probed = faces.embeddings[drawn], faces.ages[drawn], drawn, seed
    return {
        "false_matches_by_age": {ANALYSED_JOIN: of_join} | baselines,
        "errors": {"false_matches": errors, "false_non_matches": []},
        "leaks": {"meaning": MEANING, "age_in_identity": figures_or_reason(lambda: age_probe(*probed))},
    }


def worst_searches(
    search: SearchResult,
    ages: tuple[np.ndarray | None, np.ndarray | None],
    names: tuple[Callable[[int], str], Callable[[int], str]],
) -> dict[str, list[dict[str, Any]]]:
    """The gallery images of others that look most like a probe, and the probes least like their own image."""

    def named(worst_first: np.ndarray, places: np.ndarray, scores: np.ndarray) -> list[dict[str, Any]]:
        return [
            _named(names[0](a), names[1](b), scores[a], _age(ages[0], a), _age(ages[1], b))
            for a, b in ((a, int(places[a])) for a in worst_first[:NUM_ERRORS_NAMED].tolist())
        ]

    searched = np.flatnonzero(np.isfinite(search.best_other))
    most_alike_first = searched[np.argsort(-search.best_other[searched], kind="stable")]
    return {
        "false_matches": named(most_alike_first, search.other, search.best_other),
        "false_non_matches": named(np.argsort(search.best_mate, kind="stable"), search.mate, search.best_mate),
    }


def analyse_pairs(
    scores: np.ndarray, genuine: np.ndarray, first: np.ndarray, second: np.ndarray, names: Callable[[int], str],
    seed: int = 0,
) -> Analysis:  # fmt: skip
    """A list of pairs (CACD-VS, CALFW, .bin): who the people are is unknown, so intervals are over pairs."""
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
        return [
            _named(names(a), names(b), scores[row], _age(ages, a), _age(ages, b))
            for row, a, b in ((row, int(first[row]), int(second[row])) for row in rows)
        ]

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


def figures_or_reason(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures, or why there are none: a set that is too small for one figure has the others all the same."""
    try:
        return measure()
    except UserError as error:
        return {"reason": str(error)}
