"""The report's sections on age: errors by age gap, and the age that a probe reads from an embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evaluation.report.blocks import Block, Cell, Curve, Plot, Table
from evaluation.report.reading import Tested, Tree, branch, figure, gather, reason_of, sentence, words

ALL = "all"  # the row over all bins

# -------------------------------------------------------------------------------------------------------------- age gap

AGE_GAP_WORDS = (
    "Random impostors are all pairs of two people. Matched impostors are those with the same years between their "
    "pictures, or the same age of the younger: against them, an age difference does not help."
)
BIN_COLUMNS = {
    "num_genuine": "genuine pairs",
    "num_random_impostor": "random impostors",
    "num_matched_impostor": "matched impostors",
    "auc_random_impostors_percent": "AUC %, random",
    "auc_matched_impostors_percent": "AUC %, matched",
    "auc_same_years_impostors_percent": "AUC %, same years",
    "tar_at_far_1e-2_random_impostors_percent": "TAR % at FAR 1e-2, random",
    "tar_at_far_1e-2_matched_impostors_percent": "TAR % at FAR 1e-2, matched",
    "tar_at_far_1e-3_random_impostors_percent": "TAR % at FAR 1e-3, random",
    "tar_at_far_1e-3_matched_impostors_percent": "TAR % at FAR 1e-3, matched",
}


def age_gap(one: Tested) -> list[Block]:
    """Errors and cosines by the years between pictures, errors by the age of the younger, rank-1 by mate distance."""
    by_gap, no_gap = gather(one, "figures by age gap", "analysis", "age_gap", "bins")
    by_younger, no_younger = gather(one, "figures by the age of the younger", "analysis", "younger_age", "bins")
    distant, no_distant = gather(one, "rank-1 by mate distance", "analysis", "mate_distance")
    if not (by_gap or by_younger or distant):
        reasons = [reason_of(result, "analysis", "age_gap") for _, result in one.of_models]
        return [sentence(f"No figures by age{f': {why}' if why else ''}") for why in dict.fromkeys(reasons)]
    blocks: list[Block] = []
    if by_gap:
        blocks += [gap_errors(one, by_gap, "by age gap", "years between the pictures"), gap_cosines(one, by_gap)]
    if by_younger:
        blocks.append(gap_errors(one, by_younger, "by age of the younger", "age in the younger picture, years"))
    if distant:
        blocks.append(mate_distance(one, distant))
    for having, what in ((by_gap, "years between the pictures"), (by_younger, "age in the younger picture")):
        blocks += [bin_table(one, model, bins, what) for model, bins in having]
    return [*blocks, *no_gap, *no_younger, *no_distant]


def bin_values(bins: Tree, key: str) -> list[float | None]:
    return [figure(row, key) for name, row in bins.items() if name != ALL]


def bin_names(having: Sequence[tuple[str, Tree]]) -> list[str]:
    return [name for name in having[0][1] if name != ALL]


def same_bins(having: Sequence[tuple[str, Tree]]) -> list[tuple[str, Tree]]:
    """Those with the bins of the first one: one axis can show no others."""
    return [(model, bins) for model, bins in having if bin_names([(model, bins)]) == bin_names(having)]


def gap_errors(one: Tested, having: Sequence[tuple[str, Tree]], by: str, x_label: str) -> Plot:
    """Genuine pairs rejected at FAR 1e-2, against random and against matched impostors."""
    curves = []
    for model, bins in same_bins(having):
        for kind in ("random", "matched"):
            accepted = bin_values(bins, f"tar_at_far_1e-2_{kind}_impostors_percent")
            rejected = [None if value is None else 100.0 - value for value in accepted]
            curves.append(Curve(f"{model}, {kind} impostors", bin_names(having), rejected))
    return Plot(f"{one.title}: genuine pairs rejected {by}", x_label, "rejected at FAR 1e-2, %", curves)


def gap_cosines(one: Tested, having: Sequence[tuple[str, Tree]]) -> Plot:
    curves = [
        Curve(f"{model}, {words_of_kind}", bin_names(having), bin_values(bins, f"mean_{kind}_cosine"))
        for model, bins in same_bins(having)
        for kind, words_of_kind in (("genuine", "genuine pairs"), ("matched_impostor", "matched impostors"))
    ]
    return Plot(f"{one.title}: mean cosine by age gap", "years between the pictures", "mean cosine", curves)


def mate_distance(one: Tested, having: Sequence[tuple[str, Tree]]) -> Plot:
    names = list(having[0][1])
    alike = [(model, rows) for model, rows in having if list(rows) == names]
    curves = [Curve(model, names, [figure(row, "rank1_percent") for row in rows.values()]) for model, rows in alike]
    chance = [figure(row, "chance_rank1_percent") for row in having[0][1].values()]
    curves.append(Curve("chance", names, chance, is_reference=True))
    return Plot(f"{one.title}: rank-1 with distant mates only", "years to the mate, at least", "rank-1, %", curves)


def bin_table(one: Tested, model: str, bins: Tree, what: str) -> Table:
    rows: list[list[Cell]] = [[name, *(figure(row, key) for key in BIN_COLUMNS)] for name, row in bins.items()]
    reasons = [(name, words(branch(row).get("reason"), "")) for name, row in bins.items()]
    note = " ".join(sentence(f"{name}: {reason}") for name, reason in reasons if reason)
    return Table(f"{one.title}: {model}, by {what}", [what, *BIN_COLUMNS.values()], rows, note)


# ------------------------------------------------------------------------------------------------------------- age leak

PROBE_FIGURES = {
    "age_group_accuracy_percent": "age group right, %",
    "age_group_balanced_accuracy_percent": "the same, balanced, %",
    "age_group_mae": "error, age groups",
    "age_mae_years": "error, years",
    "age_r2": "R2 of years",
}
READERS = (  # which embedding and probe, the part of the leaks and the prefix of its figures
    ("identity, linear", "age_in_identity", ""),
    ("identity, non-linear", "age_in_identity", "nonlinear_"),
    ("permuted, linear", "age_in_identity", "permuted_"),
    ("permuted, non-linear", "age_in_identity", "nonlinear_permuted_"),
    ("chance", "age_in_identity", "chance_"),
    ("age branch, linear", "age_in_age", ""),
)


def age_leak(one: Tested) -> list[Block]:
    """What a probe reads of the age, beside chance, permuted ages and the age embedding; and CLUB's estimate."""
    having, lacking = gather(one, "leaks of age", "analysis", "leaks")
    if not having:
        return lacking
    key = "age_group_balanced_accuracy_percent"
    names = [name for name, _, _ in READERS]
    curves = [
        Curve(model, names, [figure(branch(part, place), prefix + key) for _, place, prefix in READERS])
        for model, part in having
    ]
    meanings = dict.fromkeys(words(part.get("meaning"), "") for _, part in having)
    blocks: list[Block] = [text for text in meanings if text]
    blocks.append(
        Plot(f"{one.title}: age read by probes", "embedding, and probe", "balanced accuracy, %", curves, kind="bars")
    )
    blocks += [probe_table(one, model, part) for model, part in having]
    blocks.append(other_leaks(one, having))
    return [*blocks, *lacking, *leak_reasons(having)]


def probe_table(one: Tested, model: str, part: Tree) -> Table:
    rows = [
        [name, *(figure(branch(part, place), prefix + key) for key in PROBE_FIGURES)] for name, place, prefix in READERS
    ]
    counted = branch(part, "age_in_identity")
    pictures, people = figure(counted, "num_images"), figure(counted, "num_people")
    note = "" if pictures is None or people is None else f"{pictures:,} pictures of {people:,} people."
    header = ["embedding, and probe", *PROBE_FIGURES.values()]
    return Table(f"{one.title}: {model}, what probes read of the age", header, rows, note)


def other_leaks(one: Tested, having: Sequence[tuple[str, Tree]]) -> Table:
    rows: list[list[Cell]] = []
    for model, part in having:
        identity, club = branch(part, "identity_in_age"), branch(part, "club")
        rows.append(
            [
                model,
                *(figure(identity, key) for key in ("rank1_percent", "chance_rank1_percent")),
                *(figure(club, key) for key in ("club_nats", "shuffled_club_nats")),
            ]
        )
    header = ["model", "rank-1 % by age embedding", "chance, %", "CLUB estimate, nats", "CLUB, shuffled, nats"]
    note = (
        "CLUB is the model's own estimate of what both branches share. Its shuffled figure should be near 0; "
        "how near says how far to trust the estimate."
    )
    return Table(f"{one.title}: identity in the age embedding, and CLUB", header, rows, note)


def leak_reasons(having: Sequence[tuple[str, Tree]]) -> Iterator[str]:
    """Why single leaks were not measured."""
    named = {
        "age_in_identity": "probe of the identity embedding",
        "age_in_age": "probe of the age embedding",
        "identity_in_age": "search by age embedding",
        "club": "CLUB estimate",
    }
    for model, part in having:
        for key, what in named.items():
            entry = branch(part, key)
            if isinstance(entry.get("reason"), str):
                yield sentence(f"{model}: no {what}: {entry['reason']}")
            elif not entry:
                yield f"{model}: no {what} in these results."
