"""Embeddings of one model on one benchmark -> its figures, and what is needed to compare two models.

The published protocols for both joins of the two views and for the baselines, and what goes beyond them
(evaluation/analysis.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from evaluation.analysis import Options, analyse_identities, analyse_pairs, analyse_pictures, analyse_probe_gallery
from evaluation.arrays import Units, check_direction, identity_codes, units_of
from evaluation.embeddings.embedding_set import ANALYSED_JOIN, EmbeddingSet
from evaluation.identification import SearchResult, search_gallery, search_set, two_sides
from evaluation.intervals import paired_differences, paired_share_difference
from evaluation.protocols import (
    age_group_error,
    leave_one_out_chance,
    mates_against_rest,
    mates_against_rest_chance,
    probe_gallery_chance,
    ten_fold_verification,
)
from evaluation.report.tables import Row, rows_of
from evaluation.verification import all_pairs, pair_list_figures

if TYPE_CHECKING:
    from evaluation.embeddings.extraction import Extracted

MAX_IMAGES_OF_ALL_PAIRS = 2_000  # beyond, the bootstrap over all pairs would take minutes
Result: TypeAlias = "dict[str, Any]"  # protocol -> column (a join or a baseline) -> figures


@dataclass(frozen=True, eq=False)
class Comparable:
    """Scores of one model that those of another on the same benchmark are compared with."""

    pairs: tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None] | None = None  # scores, genuine, people
    hits: tuple[np.ndarray, np.ndarray] | None = None  # of rank 1, and the people they count by
    search: SearchResult | None = None  # of the probes in the gallery


class EvalSet(Protocol):
    """What scoring asks of a benchmark (data.benchmarks.EvalSet has it)."""

    @property
    def protocol(self) -> str: ...  # a key of SCORERS
    @property
    def title(self) -> str: ...
    @property
    def sides(self) -> tuple[tuple[Any, str], ...]: ...  # pictures (data.faces.Faces), and what they are called
    @property
    def pairs(self) -> Any: ...  # data.pairs.PairList; None where there is no list of pairs
    @property
    def sha256(self) -> str | None: ...  # of a verification set's file
    @property
    def left_out(self) -> Mapping[str, int]: ...  # key in results.json -> number of pictures
    def name(self, faces: Any, i: int) -> str: ...


def embedding_sets(benchmark: EvalSet, extracted: list[Extracted]) -> list[EmbeddingSet]:
    """The embeddings of each side of the benchmark with what is known of its pictures."""
    if benchmark.pairs is not None:
        return [EmbeddingSet(extracted[0], benchmark.pairs.images.key)]
    sets = []
    for of_side, (faces, _) in zip(extracted, benchmark.sides, strict=True):
        identities = faces.identities
        if len(benchmark.sides) > 1:  # matched by name: the sides may not hold the same people in the same order
            identities = np.array(faces.identity_names)[identities]
        sets.append(EmbeddingSet(of_side, partial(benchmark.name, faces), identities, faces.ages, faces.age_groups))
    return sets


def score(benchmark: EvalSet, sets: list[EmbeddingSet], options: Options) -> tuple[Result, Comparable]:
    """The benchmark's figures; `sets` are those of `embedding_sets`."""
    result, comparable = SCORERS[benchmark.protocol](benchmark, sets, options)
    return {**benchmark.left_out, **result}, comparable


def _score_listed_pairs(benchmark: EvalSet, sets: list[EmbeddingSet], options: Options) -> tuple[Result, Comparable]:
    pairs, sha256 = benchmark.pairs, benchmark.sha256
    metadata = {"num_pairs_dropped": pairs.num_pairs_dropped} | ({} if sha256 is None else {"sha256": sha256})
    listed = pairs.first, pairs.second, pairs.genuine
    result, comparable = score_pair_list(sets[0], *listed, options, with_sum=sha256 is not None)
    return metadata | result, comparable


SCORERS = {  # by the protocol of a benchmark
    "leave_one_out": lambda benchmark, sets, options: score_identities(*sets, options),
    "probe_gallery": lambda benchmark, sets, options: score_probe_gallery(*sets, options),
    "ten_fold_verification": _score_listed_pairs,
    "all_impostors": lambda benchmark, sets, options: score_pictures(*sets, options),
}


def score_identities(faces: EmbeddingSet, options: Options) -> tuple[Result, Comparable]:
    """FG-NET's protocols: leave-one-out, and every pair of mates against all images of other people."""
    identities, embeddings = faces.identities, faces.embeddings
    codes = identity_codes(identities, len(faces))
    units_of_columns = dict(faces.columns())
    columns = {
        column: (search_set(units, codes), mates_against_rest(units, identities))
        for column, units in units_of_columns.items()
    }
    result = {
        "num_images": len(identities),
        "num_identities": len(np.unique(identities)),
        "leave_one_out": {column: {"rank1_percent": search.rank1_percent} for column, (search, _) in columns.items()}
        | {"chance": leave_one_out_chance(identities)},
        "mates_against_rest": {column: cmc for column, (_, cmc) in columns.items()}
        | {"chance": mates_against_rest_chance(identities)},
        **age_errors([faces]),
    }
    check_direction(embeddings, "embeddings")
    search, _ = columns[ANALYSED_JOIN]
    if options.distractors is not None:
        result["mates_among_distractors"] = {
            ANALYSED_JOIN: mates_against_rest(embeddings, identities, options.distractors)
        }
    if not options.analysis:
        return result, Comparable()
    few = len(faces) <= MAX_IMAGES_OF_ALL_PAIRS
    pairs = all_pairs(embeddings, identities) if few else None
    result["analysis"] = analyse_identities(faces, search, pairs, options, units_of_columns.get("grey_pixels"))
    probes = np.flatnonzero(np.isfinite(search.best_mate))
    return result, Comparable(
        pairs=(pairs.scores, pairs.genuine, identities[pairs.first], identities[pairs.second]) if few else None,
        hits=(search.hits[probes], identities[probes]),
    )


def score_probe_gallery(probe: EmbeddingSet, gallery: EmbeddingSet, options: Options) -> tuple[Result, Comparable]:
    """MORPH2's protocol: the probes in the gallery; people are matched by name."""
    people = probe.identities, gallery.identities
    searches = {
        column: search_gallery(of_probe, of_gallery, *two_sides(of_probe, people[0], of_gallery, people[1]))
        for (column, of_probe), (_, of_gallery) in zip(probe.columns(), gallery.columns(), strict=True)
    }
    result = {
        "num_probes": len(probe),
        "num_gallery": len(gallery),
        "probe_gallery": {column: {"rank1_percent": search.rank1_percent} for column, search in searches.items()}
        | {"chance": probe_gallery_chance(*people)},
        **age_errors([probe, gallery]),
    }
    check_direction(probe.embeddings, "probe")
    check_direction(gallery.embeddings, "gallery")
    search = searches[ANALYSED_JOIN]
    if options.analysis:
        result["analysis"] = analyse_probe_gallery(probe, gallery, search, options)
    return result, Comparable(hits=(search.hits, people[0]), search=search)


def score_pair_list(
    faces: EmbeddingSet,
    first: np.ndarray,
    second: np.ndarray,
    genuine: np.ndarray,
    options: Options,
    with_sum: bool = False,
) -> tuple[Result, Comparable]:
    """Ten folds of pairs (CACD-VS, CALFW, .bin); published figures, and exact ones over all pairs under other names.

    `with_sum` adds InsightFace's way for .bin files: the views are added before they are normalised.
    """

    def figures(units: Units) -> Result:
        scores = units.pair_scores(first, second)
        return ten_fold_verification(scores, genuine) | pair_list_figures(scores, genuine)

    of_columns = {column: figures(units) for column, units in faces.columns()}
    if with_sum:
        of_columns["sum"] = figures(units_of(faces.extracted.original + faces.extracted.mirror, "embeddings"))
    result = {
        "num_pairs": len(genuine),
        "verification": of_columns | {"chance": VERIFICATION_CHANCE},
        "insightface_accuracy": {"reason": ONE_VIEW},
    }
    if faces.extracted.has_mirror:
        accuracy = faces.insightface_accuracy(first, second, genuine)
        result["insightface_accuracy"] = {"sum": accuracy, "chance": {"accuracy_flip_percent": 50.0}}
    scores = faces.embeddings.pair_scores(first, second)
    if options.analysis:
        result["analysis"] = analyse_pairs(scores, genuine, first, second, faces.name, options.seed)
    return result, Comparable(pairs=(scores, genuine, None, None))


def score_pictures(faces: EmbeddingSet, options: Options) -> tuple[Result, Comparable]:
    """Pictures of known age of which nobody says whose they are: every pair counts as two people."""
    result = {"num_images": len(faces), "people": "unknown: every pair of pictures counts as two people"}
    return result | ({"analysis": analyse_pictures(faces, options.seed)} if options.analysis else {}), Comparable()


ONE_VIEW = "it adds the features of a picture and its mirror image, and these embeddings are of one view"
VERIFICATION_CHANCE = {
    "accuracy_percent": 50.0,
    "auc_percent": 50.0,
    "eer_percent": 50.0,
    "tar_at_far_1e-2_percent": 1.0,
}


def compare(a: Comparable, b: Comparable, seed: int = 0) -> Result:
    """Differences of model a to model b with 95 % intervals, both resampled alike, in percentage points."""
    differences: Result = {}
    if a.pairs is not None:
        scores, genuine, first, second = a.pairs
        differences |= paired_differences(scores, b.pairs[0], genuine, first, second, seed=seed)
    if a.hits is not None:
        differences |= paired_share_difference(a.hits[0], b.hits[0], a.hits[1], "rank1", seed=seed)
    return differences


def age_errors(sides: list[EmbeddingSet]) -> dict[str, dict[str, float]]:
    """Age-group error over the images of all sides; empty without an age branch or without ages."""
    if any(side.extracted.age_probabilities_original is None or (side.age_groups < 0).any() for side in sides):
        return {}
    original = np.concatenate([side.extracted.age_probabilities_original for side in sides])
    mirror = np.concatenate([side.extracted.age_probabilities_mirror for side in sides])
    return {"age": age_group_error(original, mirror, np.concatenate([side.age_groups for side in sides]))}


# ------------------------------------------------------------------------------------------------------ the table

LABELS = {
    "leave_one_out": {"rank1_percent": "leave-one-out rank-1 %"},
    "mates_against_rest": {
        "cmc_percent_1": "mate among non-mates, rank 1 %",
        "cmc_percent_10": "mate among non-mates, rank 10 %",
    },
    "mates_among_distractors": {
        "cmc_percent_1": "mate among distractors too, rank 1 %",
        "cmc_percent_10": "mate among distractors too, rank 10 %",
    },
    "probe_gallery": {"rank1_percent": "rank-1 %"},
    "verification": {
        "accuracy_percent": "ten-fold accuracy %",
        "auc_percent": "ten-fold AUC %",
        "eer_percent": "ten-fold EER %",
        "tar_at_far_1e-2_percent": "TAR % at FAR 1e-2, all pairs",
    },
    "insightface_accuracy": {"accuracy_flip_percent": "InsightFace accuracy %"},
}
LOWER_IS_BETTER = {"eer_percent"}  # of these figures; the others are shares of what was found or recognised


def missing_figures(results: dict[str, Result]) -> list[str]:
    """Why figures of the table are missing, a sentence each."""
    reasons = [
        (result, words, result.get("verification", {}).get(ANALYSED_JOIN, {}).get(key.replace("_percent", "_reason")))
        for result in results.values()
        for key, words in LABELS["verification"].items()
    ] + [
        (result, *LABELS["insightface_accuracy"].values(), result.get("insightface_accuracy", {}).get("reason"))
        for result in results.values()
    ]
    return [f"{result['title']}, {words}: {reason}" for result, words, reason in reasons if reason is not None]


def make_rows(results: dict[str, Result]) -> list[Row]:
    """The table's rows of one model's results."""
    rows = []
    for result in results.values():
        for protocol, labels in LABELS.items():
            if protocol in result:
                rows += rows_of(result["title"], labels, result[protocol])
        if "age" in result:  # of the age branch: no views are joined, so one column
            rows.append(Row(result["title"], "age error, in age groups", result["age"]["age_group_mae"], None))
    return rows
