"""results.json -> what the report's sections hold: headings, sentences, tables, plots and pairs of pictures.

Nothing here knows HTML. Parts that are absent, or that hold a reason only, become sentences; figures are never made up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from evaluation.report.blocks import Block, Cell, Curve, Heading, Histogram, Pair, Pairs, Plot, Table, Terms
from evaluation.report.tables import DIFFERENCES
from evaluation.scoring import JOINS, LABELS

Tree: TypeAlias = dict[str, Any]
CONCATENATE = JOINS[0]
COLUMNS = {"concatenate": "concatenate", "add": "add", "sum": "sum", "grey_pixels": "grey pixels", "chance": "chance"}
ALL_PAIRS = {
    "pooled_auc_percent": "AUC %, all pairs",
    "pooled_eer_percent": "EER %, all pairs",
    "tar_at_far_1e-2_percent": "TAR % at FAR 1e-2, all pairs",
    "tar_at_far_1e-3_percent": "TAR % at FAR 1e-3, all pairs",
}
RATES = ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6")
INTERVALS = {  # where the interval of a published figure stands in the analysis
    ("leave_one_out", "rank1_percent"): "rank1",
    ("probe_gallery", "rank1_percent"): "rank1",
    ("verification", "tar_at_far_1e-2_percent"): "intervals",
}
ALL = "all"  # the row over all bins


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tested:
    """One setting, and the results of each model that ran on it."""

    name: str
    title: str
    benchmark: str  # as published figures name it, "" for a set of which there are none
    of_models: Sequence[tuple[str, Tree]]


def sections_of(report: Tree) -> list[Section]:
    """All sections in their order, also those that only say what is missing."""
    tested = settings_of(report)
    return [
        Section("summary", "Summary", summary(report, tested)),
        Section("side-by-side", "Models side by side", side_by_side(report)),
        Section("verification", "Verification", each(tested, verification)),
        Section("score-histograms", "Score histograms", each(tested, histograms)),
        Section("identification", "Identification", each(tested, identification)),
        Section("age-gap", "Age gap", [AGE_GAP_WORDS, *each(tested, age_gap)]),
        Section("age-leak", "Age leak", each(tested, age_leak)),
        Section("worst-errors", "Worst errors", each(tested, worst_errors)),
        Section("did-not-run", "What did not run", did_not_run(report)),
        Section("how-to-read", "How to read this", [Terms(GLOSSARY)]),
    ]


# --------------------------------------------------------------------------------------------------- reading the report


def branch(tree: Any, *keys: str) -> Tree:
    """The dict below these keys; empty where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def items(tree: Any, key: str) -> list[Any]:
    """The list at this key; empty where there is none."""
    value = tree.get(key) if isinstance(tree, dict) else None
    return list(value) if isinstance(value, list | tuple) else []


def dicts(tree: Any, key: str) -> list[Tree]:
    """The dicts in the list at this key."""
    return [value for value in items(tree, key) if isinstance(value, dict)]


def number(value: Any) -> float | int | None:
    """The value where it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def figure(tree: Any, key: str) -> float | int | None:
    """The finite number at this key."""
    return number(branch(tree).get(key))


def columns(tree: Any, *keys: str) -> list[list[float | int | None]]:
    """The lists of numbers at these keys, cut to the shortest."""
    found = [[number(value) for value in items(tree, key)] for key in keys]
    length = min(map(len, found))
    return [values[:length] for values in found]


def words(value: Any, otherwise: str) -> str:
    """The value where it is a text that says something."""
    return value if isinstance(value, str) and value.strip() else otherwise


def model_names(report: Tree) -> list[tuple[str, Tree]]:
    """Each model's name and what the report holds of it."""
    return [(words(model.get("name"), f"model {i}"), model) for i, model in enumerate(dicts(report, "models"), 1)]


def settings_of(report: Tree) -> list[Tested]:
    """The settings that any model ran on, in the order in which they come."""
    titles: dict[str, str] = {}
    benchmarks: dict[str, str] = {}
    results: dict[str, list[tuple[str, Tree]]] = {}
    for model, told in model_names(report):
        for name, result in branch(told, "results").items():
            titles.setdefault(name, words(branch(result).get("title"), name))
            benchmarks.setdefault(name, words(branch(result).get("benchmark"), ""))
            results.setdefault(name, []).append((model, branch(result)))
    return [Tested(name, titles[name], benchmarks[name], of_models) for name, of_models in results.items()]


def reason_of(tree: Any, *keys: str) -> str:
    """The first reason on the way down these keys."""
    for depth in range(len(keys) + 1):
        reason = branch(tree, *keys[:depth]).get("reason")
        if isinstance(reason, str):
            return reason
    return ""


def gather(tested: Tested, what: str, *keys: str) -> tuple[list[tuple[str, Tree]], list[str]]:
    """The part below these keys of each model that has it, and a sentence for each that has not."""
    having, lacking = [], []
    for model, result in tested.of_models:
        part = branch(result, *keys)
        if part and set(part) != {"reason"}:
            having.append((model, part))
            continue
        reason = reason_of(result, *keys)
        lacking.append((model, f"no {what}" + (f": {reason}" if reason else " in these results")))
    if not having and len({text for _, text in lacking}) == 1:  # what no model has is said once
        return having, [sentence(lacking[0][1][0].upper() + lacking[0][1][1:])]
    return having, [sentence(f"{model}: {text}") for model, text in lacking]


def sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def each(tested: Sequence[Tested], blocks_of) -> list[Block]:
    """The blocks of each setting below its title."""
    if not tested:
        return ["No benchmark ran, so there is nothing to show."]
    return [block for one in tested for block in (Heading(one.title), *blocks_of(one))]


def interval(tree: Tree, key: str) -> str | None:
    """The interval of a figure in words."""
    low, high = figure(tree, f"{key}_low"), figure(tree, f"{key}_high")
    return None if low is None or high is None else f"{low:.2f} to {high:.2f}"


# -------------------------------------------------------------------------------------------------------------- summary

SUMMARY_WORDS = (
    "Figures are measured on the pictures named here and say nothing about others. Each picture is embedded with its "
    "mirror image; concatenate and add are the two ways to join both. Grey pixels, without any network, and chance are "
    "floors: a model should be well above them. Intervals hold for concatenate."
)


def summary(report: Tree, tested: Sequence[Tested]) -> list[Block]:
    """What was tested, the main figures, and published ones beside them."""
    blocks: list[Block] = [SUMMARY_WORDS, *described_models(report)]
    rows, reasons = main_rows(tested)
    if rows:
        used = [0, 1, 2, *(3 + i for i in range(len(COLUMNS) + 1) if any(row[3 + i] is not None for row in rows))]
        header = ["benchmark", "model", "measure", *MAIN_COLUMNS]
        note = f"Without an interval, or left out: {'; '.join(reasons)}." if reasons else ""
        shown = [[row[i] for i in used] for row in rows]
        blocks.append(Table("Main figures", [header[i] for i in used], shown, note))
    else:
        blocks.append("No benchmark ran, so there are no figures.")
    blocks += age_errors(tested)
    return blocks + list(published(report, tested))


MAIN_COLUMNS = ("concatenate", "95 % interval", *list(COLUMNS.values())[1:])


def main_rows(tested: Sequence[Tested]) -> tuple[list[list[Cell]], list[str]]:
    """Rows of benchmark, model, measure and MAIN_COLUMNS; and why figures have no interval."""
    rows: list[list[Cell]] = []
    reasons: list[str] = []
    for one in tested:
        for protocol, labels in [*LABELS.items(), ("verification", ALL_PAIRS)]:
            for key, measure in labels.items():
                if labels is ALL_PAIRS and key in LABELS["verification"] and has_protocol(one, protocol):
                    continue  # it is there already
                for model, result in one.of_models:
                    place = "intervals" if labels is ALL_PAIRS else INTERVALS.get((protocol, key))
                    sure = branch(result, "analysis", place) if place else {}
                    cells = [figure(branch(result, protocol, column), key) for column in COLUMNS]
                    reason = sure.get(f"{key}_interval_reason")
                    if isinstance(reason, str) and reason not in reasons:
                        reasons.append(reason)
                    if labels is ALL_PAIRS and cells[0] is None:
                        cells[0] = figure(sure, key)
                    if all(cell is None for cell in cells[:-1]):  # chance alone is no result
                        continue
                    rows.append([one.title, model, measure, cells[0], interval(sure, key), *cells[1:]])
    return rows, reasons


def has_protocol(one: Tested, protocol: str) -> bool:
    return any(branch(result, protocol) for _, result in one.of_models)


def described_models(report: Tree) -> Iterator[Block]:
    """The models' files, and what the test ran with."""
    models = model_names(report)
    if not models:
        yield "There is no model in this report."
        return
    rows = [
        [
            name,
            words(told.get("weights") or told.get("embeddings"), "not told"),
            words(told.get("backbone"), "not told"),
            words(str(told.get("purification", "")), "not told"),
            words(told.get("sha256"), "not told"),
        ]
        for name, told in models
    ]
    yield Table("Models", ["model", "file", "backbone", "purification", "SHA-256"], rows)
    software = ", ".join(f"{name} {version}" for name, version in branch(report, "software").items())
    date = words(report.get("date"), "")
    yield f"Tested{f' on {date}' if date else ''}{f' with {software}' if software else ''}."


def age_errors(tested: Sequence[Tested]) -> Iterator[Table]:
    """The error of the age branch where there is one."""
    rows = [
        [one.title, model, figure(branch(result, "age"), "age_group_mae")]
        for one in tested
        for model, result in one.of_models
        if branch(result, "age")
    ]
    if rows:
        yield Table(
            "Age branch: mean absolute error in age groups",
            ["benchmark", "model", "error, age groups"],
            rows,
            decimals=3,
        )


# -------------------------------------------------------------------------------------------- published figures


def published(report: Tree, tested: Sequence[Tested]) -> Iterator[Block]:
    """Published figures of each benchmark, after what was measured here."""
    yield Heading("Published figures beside measured ones")
    figures = dicts(report, "published")
    if not figures:
        yield "The report holds no published figures."
        return
    yield (
        "Settings are named as their sources name them. Training data, alignment and lists of pairs differ from paper "
        "to paper, so a small difference says little."
    )
    header = ["method", "setting", "figure %", "interval", "source"]
    benchmarks = list(dict.fromkeys(words(told.get("benchmark"), "not told") for told in figures))
    elsewhere: list[list[Cell]] = []
    for benchmark in benchmarks:
        here = [one for one in tested if one.benchmark == benchmark]
        of_benchmark = [told for told in figures if words(told.get("benchmark"), "not told") == benchmark]
        rows = [published_row(told) for told in of_benchmark]
        if not here:
            elsewhere += rows
            continue
        title = " and ".join(one.title for one in here)
        yield Table(f"{title}: measured and published", header, [*measured_rows(here, of_benchmark), *rows])
    if elsewhere:
        yield Table("Published figures of sets that were not tested here", header, elsewhere)


def measured_rows(here: Sequence[Tested], figures: Sequence[Tree]) -> Iterator[list[Cell]]:
    """The figures of ours that the published ones are of; the main one where the report does not say."""
    told = [(figure.get("protocol"), figure.get("figure")) for figure in figures]
    wanted = dict.fromkeys(pair for pair in told if pair[1] in LABELS.get(pair[0], {}))
    for one in here:
        for protocol, key in wanted or [(name, next(iter(labels))) for name, labels in LABELS.items()]:
            for model, result in one.of_models:
                for join in JOINS:
                    value = figure(branch(result, protocol, join), key)
                    if value is not None:
                        place = INTERVALS.get((protocol, key)) if join == CONCATENATE else None
                        sure = interval(branch(result, "analysis", place), key) if place else None
                        yield [model, f"{one.title}, {LABELS[protocol][key]}, {join}", value, sure, "measured here"]


def published_row(told: Tree) -> list[Cell]:
    low, high = figure(told, "low_percent"), figure(told, "high_percent")
    return [
        words(told.get("method"), "not told"),
        words(told.get("setting"), "not told"),
        figure(told, "value_percent"),
        None if low is None or high is None else f"{low:.2f} to {high:.2f}",
        words(told.get("source"), "not told"),
    ]


# --------------------------------------------------------------------------------------------------------- side by side


def side_by_side(report: Tree) -> list[Block]:
    """Differences of models on the same pictures, and which intervals exclude 0."""
    rows: list[list[Cell]] = []
    apart: list[str] = []
    num_intervals, reasons = 0, []
    for told in dicts(report, "comparisons"):
        title = words(told.get("title"), words(told.get("setting"), "not told"))
        models = f"{words(told.get('a'), 'a')} less {words(told.get('b'), 'b')}"
        if "reason" in told:
            reasons.append(f"{title}, {models}: {told['reason']}")
        for name, measure in DIFFERENCES.items():
            key = f"{name}_difference_percentage_points"
            value = figure(told, key)
            if value is None:
                continue
            low, high = figure(told, f"{key}_low"), figure(told, f"{key}_high")
            verdict, limits = f"no interval: {words(told.get(f'{key}_interval_reason'), 'no reason told')}", None
            if low is not None and high is not None:
                num_intervals += 1
                limits, is_apart = f"{low:+.2f} to {high:+.2f}", low > 0 or high < 0
                verdict = "yes" if is_apart else "no"
                apart += [f"{title}, {measure}, {models} ({value:+.2f})"] * is_apart
            rows.append([title, measure, models, f"{value:+.2f}", limits, verdict])
    if not rows:
        several = len(model_names(report)) > 1
        why = "The report holds no comparison of its models." if several else "One model or none was tested."
        return [why, *map(sentence, reasons)]
    said = f"{len(apart)} of {num_intervals} intervals exclude 0"
    header = ["benchmark", "measure", "models", "difference", "95 % interval", "excludes 0"]
    return [
        "Both models see the same pictures and the same resamples. Where the interval holds 0, these pictures do not "
        "tell the models apart.",
        sentence(f"{said}: {'; '.join(apart)}" if apart else said),
        Table("Differences in percentage points", header, rows),
        *map(sentence, reasons),
    ]


# --------------------------------------------------------------------------------------------------------- verification


def verification(one: Tested) -> list[Block]:
    """ROC and DET of all models, and TAR at FAR with intervals."""
    having, lacking = gather(one, "verification curve", "analysis", "verification")
    if not having:
        return lacking
    roc, det = [], []
    for model, part in having:
        far, tar = columns(branch(part, "curve"), "roc_far_percent", "roc_tar_percent")
        shown = [i for i, rate in enumerate(far) if rate is not None and rate > 0]  # the axis is logarithmic
        roc.append(Curve(model, [far[i] for i in shown], [tar[i] for i in shown]))
        det.append(Curve(model, *columns(branch(part, "curve"), "det_far_percent", "det_frr_percent")))
    start = min((curve.x[0] for curve in roc if len(curve.x)), default=100.0)
    diagonal = [100.0 * (start / 100.0) ** (1 - i / 40) for i in range(41)]
    roc.append(Curve("chance", diagonal, diagonal, is_reference=True))
    blocks: list[Block] = [
        Plot(f"{one.title}: ROC", "false accept rate (FAR), %", "true accept rate (TAR), %", roc, x_log=True),
        Plot(f"{one.title}: DET", "false accept rate (FAR), %", "false reject rate, %", det, x_log=True, y_log=True),
        accept_table(one, having),
        *lacking,
    ]
    perfect = [curve.label for curve in det if not len(curve.x)]
    return blocks + [f"{label}: no threshold has both kinds of error, so there is no DET." for label in perfect]


def accept_table(one: Tested, having: Sequence[tuple[str, Tree]]) -> Table:
    rows: list[list[Cell]] = []
    reasons: dict[str, None] = {}
    for model, part in having:
        result = dict(one.of_models)[model]
        figures, sure = branch(part, "figures"), branch(result, "analysis", "intervals")
        for rate in RATES:
            key = f"tar_at_far_{rate}_percent"
            reason = figures.get(f"tar_at_far_{rate}_reason") or sure.get(f"{key}_interval_reason")
            if isinstance(reason, str):
                reasons[reason] = None
            if figure(figures, key) is None:
                continue  # the note says why
            threshold = figure(figures, f"threshold_at_far_{rate}")
            shown = None if threshold is None else f"{threshold:.4f}"
            rows.append([model, f"FAR {rate}", figure(figures, key), interval(sure, key), shown])
    genuine, impostor = (figure(branch(having[0][1], "figures"), f"num_{kind}") for kind in ("genuine", "impostor"))
    counted = "" if genuine is None or impostor is None else f"{genuine:,} genuine and {impostor:,} impostor pairs. "
    note = counted + (f"What is missing: {'; '.join(reasons)}." if reasons else "")
    header = ["model", "rate", "TAR %", "95 % interval", "threshold, cosine"]
    return Table(f"{one.title}: true accepts at false accept rates", header, rows, note.strip())


def histograms(one: Tested) -> list[Block]:
    """How the scores of both kinds of pairs are spread, for each model."""
    having, lacking = gather(one, "histogram", "analysis", "verification", "histogram")
    blocks: list[Block] = []
    for model, part in having:
        edges = columns(part, "bin_edges")[0]
        counts = columns(part, "genuine_counts", "impostor_counts")
        is_whole = len(edges) == len(counts[0]) + 1 > 1 and None not in [*edges, *counts[0], *counts[1]]
        title = f"{one.title}: {model}"
        blocks.append(
            Histogram(title, "cosine", edges, *counts) if is_whole else f"{title}: the histogram is not whole."
        )
    return [*blocks, *lacking]


# ------------------------------------------------------------------------------------------------------- identification


def identification(one: Tested) -> list[Block]:
    """CMC to rank 100 with chance, and open-set identification."""
    having, lacking = gather(one, "ranks", "analysis", "cmc")
    blocks: list[Block] = []
    if having:
        blocks += cmc(one, having)
    strangers, no_strangers = gather(one, "open-set figures", "analysis", "open_set")
    if strangers:
        blocks.append(open_set_table(one, strangers))
    return [*blocks, *lacking, *no_strangers]


def cmc(one: Tested, having: Sequence[tuple[str, Tree]]) -> list[Block]:
    curves = [ranks(model, part) for model, part in having]
    curves += [ranks("chance", branch(part, "chance"), True) for _, part in having[:1] if branch(part, "chance")]
    told = []
    for model, part in having:
        counts = {name: figure(part, f"num_{name}") for name in ("probes", "gallery", "distractors")}
        named = {"probes": "probes", "gallery": "pictures to search", "distractors": "distractors"}
        known = ", ".join(f"{counts[name]:,} {named[name]}" for name in named if counts[name] is not None)
        told.append((model, known))
    alike = len({known for _, known in told}) == 1
    said = [told[0][1]] if alike else [f"{model}: {known}" for model, known in told]
    return [
        Plot(f"{one.title}: identification", "rank", "found up to this rank, %", curves, kind="steps", x_log=True),
        *(sentence(text) for text in said if text),
    ]


def ranks(label: str, part: Tree, is_reference: bool = False) -> Curve:
    (values,) = columns(part, "cmc_percent")
    return Curve(label, list(range(1, len(values) + 1)), values, is_reference=is_reference)


def open_set_table(one: Tested, having: Sequence[tuple[str, Tree]]) -> Table:
    rates = RATES[:3]
    rows = [
        [
            model,
            figure(part, "rank1_percent"),
            *(figure(part, f"dir_at_far_{rate}_percent") for rate in rates),
            figure(part, "num_known_probes"),
            figure(part, "num_strangers"),
        ]
        for model, part in having
    ]
    header = [
        "model",
        "rank-1 %, no threshold",
        *(f"DIR % at FAR {rate}" for rate in rates),
        "known probes",
        "strangers",
    ]
    note = "DIR: known people found at rank 1 above a threshold that lets this share of strangers pass, or fewer."
    return Table(f"{one.title}: open set, half of the people are strangers", header, rows, note)


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
READERS = (  # the part of the leaks and the prefix of its figures
    ("identity embedding", "age_in_identity", ""),
    ("ages permuted", "age_in_identity", "permuted_"),
    ("chance", "age_in_identity", "chance_"),
    ("age embedding", "age_in_age", ""),
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
        Plot(f"{one.title}: age read by a linear probe", "read from", "balanced accuracy, %", curves, kind="bars")
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
    return Table(f"{one.title}: {model}, what a probe reads", ["read from", *PROBE_FIGURES.values()], rows, note)


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
            told = branch(part, key)
            if isinstance(told.get("reason"), str):
                yield sentence(f"{model}: no {what}: {told['reason']}")
            elif not told:
                yield f"{model}: no {what} in these results."


# --------------------------------------------------------------------------------------------------------- worst errors

ERRORS = {
    "false_matches": "false matches, two people who look most alike to the model",
    "false_non_matches": "false non-matches, one person who looks least alike",
}


def worst_errors(one: Tested) -> list[Block]:
    """The pairs a model errs most on."""
    having, lacking = gather(one, "named errors", "analysis", "errors")
    blocks: list[Block] = []
    for model, part in having:
        for kind, what in ERRORS.items():
            pairs = [pair_of(told) for told in dicts(part, kind)]
            if pairs:
                blocks.append(Pairs(f"{one.title}, {model}: {what}", one.name, pairs))
            else:
                blocks.append(f"{model}: no {kind.replace('_', ' ').replace('non ', 'non-')} are named.")
    return [*blocks, *lacking]


def pair_of(told: Tree) -> Pair:
    names = tuple(words(told.get(f"name_{side}"), "not told") for side in "ab")
    ages = tuple(figure(told, f"age_{side}") for side in "ab")
    return Pair((names[0], names[1]), (ages[0], ages[1]), figure(told, "cosine"))


# ---------------------------------------------------------------------------------------------- what is left to be said


def did_not_run(report: Tree) -> list[Block]:
    """What was asked for and could not be measured, and why."""
    rows = [
        [name, setting, words(why, "no reason told")]
        for name, told in model_names(report)
        for setting, why in branch(told, "did_not_run").items()
    ]
    if not rows:
        return ["Everything that was asked for ran." if settings_of(report) else "No benchmark ran; no reason is told."]
    return [Table("What did not run, and why", ["model", "setting", "why"], rows)]


GLOSSARY = (
    ("embedding", "The numbers that a model gives for a face, scaled to length 1."),
    ("cosine, score", "How alike two embeddings are: 1 is the same, 0 is unrelated."),
    ("genuine, impostor", "A pair of pictures of one person, and a pair of two people."),
    ("concatenate, add", "Two ways to join the embeddings of a picture and its mirror image."),
    ("sum", "InsightFace's way for its verification sets: views are added before they are scaled."),
    ("FAR", "False accept rate: the share of impostor pairs at or above the threshold. 1e-2 is one in a hundred."),
    ("TAR", "True accept rate: the share of genuine pairs at or above the threshold."),
    (
        "ROC, DET",
        "TAR, or the share of genuine pairs rejected, at every FAR. Good curves are high in a ROC, low in a DET.",
    ),
    ("AUC", "How often a genuine pair scores above an impostor pair; 50 % is chance."),
    ("EER", "The error where both kinds of error are equal; lower is better."),
    (
        "rank-1, CMC",
        "How often the picture most like a probe is of the same person, and how often one among the first k is.",
    ),
    ("leave-one-out", "Each picture is searched among all others."),
    ("open set, DIR", "A search that may also answer: nobody. DIR is the share of known people who are found."),
    ("distractors", "Pictures of strangers among those that are searched."),
    (
        "95 % interval",
        "How far a figure moves with other people like these. It says nothing of other cameras or countries.",
    ),
    ("age gap", "Years between the two pictures of a pair."),
    ("probe of age", "A linear reader trained to tell the age from embeddings, tested on people it has not seen."),
    (
        "permuted ages",
        "The same reader where ages were dealt anew to the pictures: it should be no better than chance.",
    ),
    ("CLUB, nats", "An estimate of the information that two embeddings share, in natural units."),
    ("n/a", "Not available: it was not measured, or there are too few pictures for it."),
)
