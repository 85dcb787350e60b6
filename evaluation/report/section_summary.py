"""The report's first and last sections: main figures, published ones, models side by side, what did not run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evaluation.embeddings.embedding_set import JOINS
from evaluation.report.blocks import Block, Cell, Heading, Table
from evaluation.report.reading import (
    Tested,
    Tree,
    branch,
    dicts,
    figure,
    interval,
    model_names,
    sentence,
    settings_of,
    words,
)
from evaluation.report.section_groups import group_blocks
from evaluation.report.tables import DIFFERENCES, with_deviation
from evaluation.scoring import LABELS

CONCATENATE = JOINS[0]
COLUMNS = {"concatenate": "concatenate", "add": "add", "sum": "sum", "grey_pixels": "grey pixels", "chance": "chance"}
ALL_PAIRS = {
    "pooled_auc_percent": "AUC %, all pairs",
    "pooled_eer_percent": "EER %, all pairs",
    "tar_at_far_1e-2_percent": "TAR % at FAR 1e-2, all pairs",
    "tar_at_far_1e-3_percent": "TAR % at FAR 1e-3, all pairs",
}
INTERVALS = {  # where the interval of a published figure stands in the analysis
    ("leave_one_out", "rank1_percent"): "rank1",
    ("probe_gallery", "rank1_percent"): "rank1",
    ("verification", "tar_at_far_1e-2_percent"): "intervals",
}

# -------------------------------------------------------------------------------------------------------------- summary

SUMMARY_WORDS = (
    "Figures are measured on the pictures named here and say nothing about others. Each picture is embedded with its "
    "mirror image; concatenate and add are the two ways to join both. Grey pixels, without any network, and chance are "
    "floors: a model should be well above them. Intervals hold for concatenate."
)

DRAWN_WORDS = (
    "Drawn faces are made by this program, of people who do not exist: figures on them compare models with each other "
    "and say nothing of photographs, so no published figures stand beside them."
)


def summary(report: Tree, tested: Sequence[Tested]) -> list[Block]:
    """Groups where there are any, what was tested, the main figures, and published ones beside them."""
    blocks: list[Block] = [*group_blocks(report), SUMMARY_WORDS]
    if drawn := [one.title for one in tested if one.drawn]:
        blocks.append(sentence(f"{DRAWN_WORDS} Here these are {', '.join(drawn)}"))
    blocks += described_models(report)
    rows, reasons = main_rows(tested)
    if rows:
        used = [0, 1, 2, *(3 + i for i in range(len(COLUMNS) + 1) if any(row[3 + i] is not None for row in rows))]
        header = ["benchmark", "model", "measure", *MAIN_COLUMNS]
        note = f"Without an interval, or left out: {'; '.join(reasons)}." if reasons else ""
        shown = [[row[i] for i in used] for row in rows]
        blocks.append(Table("Main figures", [header[i] for i in used], shown, note))
    else:
        blocks.append(
            "These sets have no figures of recognition: see the sections below." if tested else "No benchmark ran."
        )
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
                    cells = [cell_of(branch(result, protocol, column), key) for column in COLUMNS]
                    reason = sure.get(f"{key}_interval_reason")
                    if isinstance(reason, str) and reason not in reasons:
                        reasons.append(reason)
                    if labels is ALL_PAIRS and cells[0] is None:
                        cells[0] = figure(sure, key)
                    missing = branch(result, protocol).get("reason")
                    if isinstance(missing, str) and f"{measure}: {missing}" not in reasons:
                        reasons.append(f"{measure}: {missing}")
                    if all(cell is None for cell in cells[:-1]):  # chance alone is no result
                        continue
                    rows.append([one.title, model, measure, cells[0], interval(sure, key), *cells[1:]])
    return rows, reasons


def cell_of(figures: Tree, key: str) -> Cell:
    """The figure at this key, with its deviation over folds where there is one."""
    value, deviation = figure(figures, key), figure(figures, key.replace("_percent", "_std_percent"))
    return value if value is None or deviation is None else with_deviation(value, deviation)


def has_protocol(one: Tested, protocol: str) -> bool:
    return any(branch(result, protocol) for _, result in one.of_models)


def described_models(report: Tree) -> Iterator[Block]:
    """The models' files, and what the test ran with."""
    models = model_names(report)
    if not models:
        yield "There is no model in this report."
        return
    is_any_erased = any(map(erasure_in_words, (entry for _, entry in models)))
    rows = [
        [
            name,
            words(entry.get("weights") or entry.get("embeddings"), "not stated"),
            words(entry.get("backbone"), "not stated"),
            words(str(entry.get("purification", "")), "not stated"),
            *([erasure_in_words(entry) or "no"] if is_any_erased else []),
            words(entry.get("sha256"), "not stated"),
        ]
        for name, entry in models
    ]
    erased = ["age erased by purify.py"] if is_any_erased else []
    yield Table("Models", ["model", "file", "backbone", "purification", *erased, "SHA-256"], rows)
    software = ", ".join(f"{name} {version}" for name, version in branch(report, "software").items())
    date = words(report.get("date"), "")
    yield f"Tested{f' on {date}' if date else ''}{f' with {software}' if software else ''}."


def erasure_in_words(entry: Tree) -> str:
    """What purify.py erased from a model, and what it was fitted to where that is known; "" where nothing is erased."""
    facts = branch(entry, "erasure")
    if "erasure" not in entry:
        return ""
    rank, num_pictures = figure(facts, "rank"), figure(facts, "num_pictures")
    youngest, oldest = (figure(branch(facts, "years"), end) for end in ("min", "max"))
    parts = ["directions not stated" if rank is None else f"{rank} directions"]
    if num_pictures is not None:
        of_ages = "" if youngest is None or oldest is None else f" of {youngest:.0f} to {oldest:.0f} years"
        parts.append(f"fitted to {num_pictures:,} pictures{of_ages}")
    return ", ".join(parts)


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


# ---------------------------------------------------------------------------------------------------- published figures


def published(report: Tree, tested: Sequence[Tested]) -> Iterator[Block]:
    """Published figures of each benchmark, after what was measured here."""
    yield Heading("Published figures beside measured ones")
    figures = dicts(report, "published")
    if tested and all(one.drawn for one in tested):
        yield "All faces here are drawn: published figures are of photographs."
        return
    if not figures:
        yield "The report holds no published figures."
        return
    yield (
        "Settings are named as their sources name them. Training data, alignment and lists of pairs differ from paper "
        "to paper, so a small difference says little."
    )
    header = ["method", "setting", "figure %", "interval", "source"]
    benchmarks = list(dict.fromkeys(words(entry.get("benchmark"), "not stated") for entry in figures))
    elsewhere: list[list[Cell]] = []
    for benchmark in benchmarks:
        here = [one for one in tested if one.benchmark == benchmark]
        of_benchmark = [entry for entry in figures if words(entry.get("benchmark"), "not stated") == benchmark]
        rows = [published_row(entry) for entry in of_benchmark]
        if not here:
            elsewhere += rows
            continue
        title = " and ".join(one.title for one in here)
        yield Table(f"{title}: measured and published", header, [*measured_rows(here, of_benchmark), *rows])
    if elsewhere:
        yield Table("Published figures of sets that were not tested here", header, elsewhere)


def measured_rows(here: Sequence[Tested], figures: Sequence[Tree]) -> Iterator[list[Cell]]:
    """The figures of ours that the published ones are of; the main one where the report does not say."""
    entry = [(figure.get("protocol"), figure.get("figure")) for figure in figures]
    wanted = dict.fromkeys(pair for pair in entry if pair[1] in LABELS.get(pair[0], {}))
    for one in here:
        for protocol, key in wanted or [(name, next(iter(labels))) for name, labels in LABELS.items()]:
            for model, result in one.of_models:
                for join in (*JOINS, "sum"):
                    if join == "sum" and protocol == "verification":  # one of ours, of no paper
                        continue
                    value = cell_of(branch(result, protocol, join), key)
                    if value is not None:
                        place = INTERVALS.get((protocol, key)) if join == CONCATENATE else None
                        sure = interval(branch(result, "analysis", place), key) if place else None
                        yield [model, f"{one.title}, {LABELS[protocol][key]}, {join}", value, sure, "measured here"]


def published_row(entry: Tree) -> list[Cell]:
    low, high = figure(entry, "low_percent"), figure(entry, "high_percent")
    return [
        words(entry.get("method"), "not stated"),
        words(entry.get("setting"), "not stated"),
        figure(entry, "value_percent"),
        None if low is None or high is None else f"{low:.2f} to {high:.2f}",
        words(entry.get("source"), "not stated"),
    ]


# --------------------------------------------------------------------------------------------------------- side by side


def side_by_side(report: Tree) -> list[Block]:
    """Differences of models on the same pictures, and which intervals exclude 0."""
    rows: list[list[Cell]] = []
    apart: list[str] = []
    num_intervals, reasons = 0, []
    for entry in dicts(report, "comparisons"):
        title = words(entry.get("title"), words(entry.get("setting"), "not stated"))
        models = f"{words(entry.get('a'), 'a')} less {words(entry.get('b'), 'b')}"
        if "reason" in entry:
            reasons.append(f"{title}, {models}: {entry['reason']}")
        for name, measure in DIFFERENCES.items():
            key = f"{name}_difference_percentage_points"
            value = figure(entry, key)
            if value is None:
                continue
            low, high = figure(entry, f"{key}_low"), figure(entry, f"{key}_high")
            verdict, limits = f"no interval: {words(entry.get(f'{key}_interval_reason'), 'no reason given')}", None
            if low is not None and high is not None:
                num_intervals += 1
                limits, is_apart = f"{low:+.2f} to {high:+.2f}", low > 0 or high < 0
                verdict = "yes" if is_apart else "no"
                apart += [f"{title}, {measure}, {models} ({value:+.2f})"] * is_apart
            rows.append([title, measure, models, f"{value:+.2f}", limits, verdict])
    if not rows and dicts(branch(report, "groups"), "members"):
        return ["Models are compared by group: see the summary."]
    if not rows:
        several = len(model_names(report)) > 1
        why = "The report holds no comparison of its models." if several else "One model or none was tested."
        return [why, *map(sentence, reasons)]
    said = f"{len(apart)} of {num_intervals} intervals exclude 0"
    header = ["benchmark", "measure", "models", "difference", "95 % interval", "excludes 0"]
    return [
        "Both models see the same pictures and the same resamples. Where the interval holds 0, these pictures do not "
        "distinguish the models.",
        sentence(f"{said}: {'; '.join(apart)}" if apart else said),
        Table("Differences in percentage points", header, rows),
        *map(sentence, reasons),
    ]


# ----------------------------------------------------------------------------------------------------- what did not run


def did_not_run(report: Tree) -> list[Block]:
    """What was asked for and could not be measured, and why."""
    rows = [
        [name, setting, words(why, "no reason given")]
        for name, entry in model_names(report)
        for setting, why in branch(entry, "did_not_run").items()
    ]
    if not rows:
        return [
            "Everything that was asked for ran." if settings_of(report) else "No benchmark ran; no reason is given."
        ]
    return [Table("What did not run, and why", ["model", "setting", "why"], rows)]
