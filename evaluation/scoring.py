"""Embeddings of one model on one benchmark -> its figures, and what is needed to compare two models.

The published protocols for both joins of the two views and for the baselines, and what goes beyond them
(evaluation/analysis.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from evaluation.analysis import MAX_IMAGES_OF_ALL_PAIRS, analyse_identities, analyse_pairs, analyse_probe_gallery
from evaluation.identification import leave_one_out_contest, probe_gallery_contest
from evaluation.intervals import paired_differences, paired_share_difference
from evaluation.metrics import enough_impostors
from evaluation.probes import club_estimate
from evaluation.protocols import FALSE_ACCEPT_RATES as EXACT_RATES
from evaluation.protocols import (
    age_group_error,
    exact_verification,
    join_views,
    leave_one_out,
    leave_one_out_chance,
    mates_against_rest,
    mates_against_rest_chance,
    pair_scores,
    probe_gallery,
    probe_gallery_chance,
    ten_fold_verification,
)
from evaluation.report.tables import Row, rows_of
from evaluation.verification import all_pairs, too_few_impostors

if TYPE_CHECKING:
    from evaluation.embeddings.extraction import Extracted
    from evaluation.probes import MutualInformation

JOINS = ("concatenate", "add")
ANALYSED_JOIN = "concatenate"  # of what lies beyond the published figures
Result: TypeAlias = "dict[str, Any]"  # protocol -> column (a join or a floor) -> figures


@dataclass(frozen=True)
class Picture:
    """What is known of N pictures beside their pixels."""

    people: np.ndarray  # (N,) who is on them, numbers or names
    ages: np.ndarray | None  # (N,) years, -1 where unknown
    age_groups: np.ndarray  # (N,) 0..7, -1 where unknown
    name: Callable[[int], str]


@dataclass(frozen=True, eq=False)
class Comparable:
    """Scores of one model that those of another on the same benchmark are compared with."""

    pairs: tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None] | None = None  # scores, genuine, people
    hits: tuple[np.ndarray, np.ndarray] | None = None  # of rank 1, and the people they count by


@dataclass(frozen=True)
class Options:
    """What to measure beyond the published figures."""

    analysis: bool = True
    distractors: Iterable[np.ndarray] | None = None
    seed: int = 0
    mutual_information: MutualInformation | None = None  # of the model's own CLUB


class EvalSet(Protocol):
    """What scoring asks of a benchmark (data.benchmarks.EvalSet has it)."""

    @property
    def protocol(self) -> str: ...  # "leave_one_out", "probe_gallery" or "ten_fold_verification"
    @property
    def title(self) -> str: ...
    @property
    def sides(self) -> tuple[tuple[Any, str], ...]: ...  # pictures (data.faces.Faces), and what they are called
    @property
    def pairs(self) -> Any: ...  # data.pairs.PairList; None where there is no list of pairs
    @property
    def sha256(self) -> str | None: ...  # of a verification set's file
    def name(self, faces: Any, i: int) -> str: ...


def score(benchmark: EvalSet, extracted: list[Extracted], options: Options) -> tuple[Result, Comparable]:
    """The benchmark's figures; `extracted` holds the embeddings of each of its sides."""
    if benchmark.protocol == "ten_fold_verification":
        pairs, sha256 = benchmark.pairs, benchmark.sha256
        told = {"num_pairs_dropped": pairs.num_pairs_dropped} | ({} if sha256 is None else {"sha256": sha256})
        listed = pairs.first, pairs.second, pairs.genuine
        result, comparable = score_pair_list(
            extracted[0], *listed, pairs.images.key, options, with_sum=sha256 is not None
        )
        return told | result, comparable
    if benchmark.protocol == "leave_one_out":
        ((faces, _),) = benchmark.sides
        known = Picture(faces.identities, faces.ages, faces.age_groups, partial(benchmark.name, faces))
        return score_identities(extracted[0], known, options)
    # Subjects are matched by folder name: the two sides may not hold the same ones in the same order.
    probe, gallery = (
        Picture(np.array(side.identity_names)[side.identities], side.ages, side.age_groups,
                partial(benchmark.name, side))
        for side, _ in benchmark.sides
    )  # fmt: skip
    return score_probe_gallery((extracted[0], extracted[1]), (probe, gallery), options)


def score_identities(extracted: Extracted, known: Picture, options: Options) -> tuple[Result, Comparable]:
    """FG-NET's protocols: leave-one-out, and every pair of mates against all images of other people."""
    identities = known.people
    result = {
        "num_images": len(identities),
        "num_identities": len(np.unique(identities)),
        "leave_one_out": for_each_column(extracted, partial(leave_one_out, identities=identities))
        | {"chance": leave_one_out_chance(identities)},
        "mates_against_rest": for_each_column(extracted, partial(mates_against_rest, identities=identities))
        | {"chance": mates_against_rest_chance(identities)},
        **age_errors([(extracted, known)]),
    }
    embeddings = analysed(extracted)
    if options.distractors is not None:
        result["mates_among_distractors"] = {
            ANALYSED_JOIN: mates_against_rest(embeddings, identities, options.distractors)
        }
    contest, probes = leave_one_out_contest(embeddings, identities)
    if options.analysis:
        result["analysis"] = analyse_identities(
            embeddings,
            identities,
            known.ages,
            extracted.age_features,
            known.name,
            options.distractors,
            options.seed,
            club_of(extracted, options),
            (contest, probes),
        )
    pairs = None
    if len(embeddings) <= MAX_IMAGES_OF_ALL_PAIRS:
        of = all_pairs(embeddings, identities)
        pairs = (of.scores, of.genuine, identities[of.first], identities[of.second])
    return result, Comparable(pairs, (contest.hits, identities[probes]))


def score_probe_gallery(
    sides: tuple[Extracted, Extracted], known: tuple[Picture, Picture], options: Options
) -> tuple[Result, Comparable]:
    """MORPH2's protocol: the probes in the gallery; people are matched by name."""
    (of_probe, of_gallery), (probe, gallery) = sides, known
    columns = zip(embedding_columns(of_probe), embedding_columns(of_gallery), strict=True)
    result = {
        "num_probes": len(probe.people),
        "num_gallery": len(gallery.people),
        "probe_gallery": {
            column: probe_gallery(of_one, probe.people, of_other, gallery.people)
            for (column, of_one), (_, of_other) in columns
        }
        | {"chance": probe_gallery_chance(probe.people, gallery.people)},
        **age_errors([(of_probe, probe), (of_gallery, gallery)]),
    }
    embeddings = analysed(of_probe), analysed(of_gallery)
    contest = probe_gallery_contest(embeddings[0], probe.people, embeddings[1], gallery.people)
    if options.analysis:
        result["analysis"] = analyse_probe_gallery(
            *embeddings, (probe.people, gallery.people), (probe.ages, gallery.ages), (probe.name, gallery.name),
            options.seed, contest,
        )  # fmt: skip
    return result, Comparable(hits=(contest.hits, probe.people))


def score_pair_list(
    extracted: Extracted,
    first: np.ndarray,
    second: np.ndarray,
    genuine: np.ndarray,
    names: Callable[[int], str],
    options: Options,
    with_sum: bool = False,
) -> tuple[Result, Comparable]:
    """Ten folds of pairs (CACD-VS, CALFW, .bin); published figures, and exact ones over all pairs under other names.

    `with_sum` adds InsightFace's way for .bin files: the views are added before they are normalised.
    """

    def score_pairs(embeddings: np.ndarray) -> dict[str, float]:
        scores = pair_scores(embeddings[first], embeddings[second])
        return ten_fold_verification(scores, genuine) | with_enough_impostors(exact_verification(scores, genuine))

    embeddings = analysed(extracted)
    scores = pair_scores(embeddings[first], embeddings[second])
    result = {
        "num_pairs": len(genuine),
        "verification": for_each_column(extracted, score_pairs)
        | ({"sum": score_pairs(extracted.original + extracted.mirror)} if with_sum else {})
        | {"chance": VERIFICATION_CHANCE},
    }
    if options.analysis:
        result["analysis"] = analyse_pairs(scores, genuine, first, second, names, options.seed)
    return result, Comparable(pairs=(scores, genuine, None, None))


def with_enough_impostors(figures: dict[str, float]) -> Result:
    """`exact_verification` as it is reported: None, and a reason, for a TAR that would stand on too few impostors."""
    reported, num_impostor = dict(figures), int(figures["num_impostor"])
    for rate, one_in in EXACT_RATES.items():
        if not enough_impostors(num_impostor, one_in):
            reasons = {f"tar_at_far_{rate}_reason": too_few_impostors(rate, num_impostor)}
            reported |= {f"tar_at_far_{rate}_percent": None} | reasons
    return reported


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


def for_each_column(extracted: Extracted, protocol: Callable[[np.ndarray], dict]) -> dict[str, dict[str, float]]:
    """The protocol's figures for both joins and for raw grey pixels."""
    return {column: protocol(embeddings) for column, embeddings in embedding_columns(extracted)}


def embedding_columns(extracted: Extracted) -> list[tuple[str, np.ndarray]]:
    joined = [(how, join_views(extracted.original, extracted.mirror, how)) for how in JOINS]
    return joined if extracted.grey_pixels is None else [*joined, ("grey_pixels", extracted.grey_pixels)]


def analysed(extracted: Extracted) -> np.ndarray:
    """The joined embeddings that what lies beyond the published figures is measured on."""
    return join_views(extracted.original, extracted.mirror, ANALYSED_JOIN)


def club_of(extracted: Extracted, options: Options) -> Callable[[], Result] | None:
    """The model's own estimate of the mutual information of its two branches, where it has both and an estimator."""
    if options.mutual_information is None or extracted.age_features is None:
        return None
    return lambda: club_estimate(options.mutual_information, extracted.age_features, extracted.original, options.seed)


def age_errors(sides: list[tuple[Extracted, Picture]]) -> dict[str, dict[str, float]]:
    """Age-group error over the images of all sides; empty without an age branch or without ages."""
    if any(of.age_probabilities_original is None or (known.age_groups < 0).any() for of, known in sides):
        return {}
    original = np.concatenate([of.age_probabilities_original for of, _ in sides])
    mirror = np.concatenate([of.age_probabilities_mirror for of, _ in sides])
    return {"age": age_group_error(original, mirror, np.concatenate([known.age_groups for _, known in sides]))}


# ------------------------------------------------------------------------------------------------------ the table

LABELS = {
    "leave_one_out": {"rank1_percent": "leave-one-out rank-1 %"},
    "mates_against_rest": {
        "cmc_percent_1": "mates against rest, rank 1 %",
        "cmc_percent_10": "mates against rest, rank 10 %",
    },
    "mates_among_distractors": {
        "cmc_percent_1": "mates among distractors too, rank 1 %",
        "cmc_percent_10": "mates among distractors too, rank 10 %",
    },
    "probe_gallery": {"rank1_percent": "rank-1 %"},
    "verification": {
        "accuracy_percent": "ten-fold accuracy %",
        "auc_percent": "ten-fold AUC %",
        "eer_percent": "ten-fold EER %",
        "tar_at_far_1e-2_percent": "TAR % at FAR 1e-2, all pairs",
    },
}
LOWER_IS_BETTER = {"eer_percent"}  # of these figures; the others are shares of what was found or recognised


def missing_figures(results: dict[str, Result]) -> list[str]:
    """Why figures of the table are missing, a sentence each."""
    return [
        f"{result['title']}, {words}: {reason}"
        for result in results.values()
        for key, words in LABELS["verification"].items()
        for reason in [result.get("verification", {}).get(ANALYSED_JOIN, {}).get(key.replace("_percent", "_reason"))]
        if reason is not None
    ]


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
