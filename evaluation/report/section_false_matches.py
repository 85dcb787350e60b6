"""The report's section on false matches by age, and the same in short for the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from evaluation.embeddings.embedding_set import ANALYSED_JOIN
from evaluation.pairs.false_matches import ADULTS, BANDS, CHILDREN, FALSE_MATCH_RATES, MIN_FALSE_MATCHES, MIN_PAIRS
from evaluation.report.blocks import Block, Cell, Curve, HeatMap, Plot, Table
from evaluation.report.reading import Tested, Tree, branch, figure, gather, items, number, sentence, settings_of, words
from evaluation.report.tables import aligned

FALSE_MATCH_WORDS = (
    "One threshold serves all ages: it lets one impostor pair in 1,000 of all pass (FMR 1e-3; or in 10,000, or in "
    "100,000). How many pass among pairs of certain ages? A cell holds log10 of that share: -3 is one in 1,000, -1 one "
    "in ten; orange is above the share of all pairs, purple below. A cell with < has no pair that passes, so that its "
    f"share is below one in its number of pairs; one in brackets rests on fewer than {MIN_FALSE_MATCHES} pairs that "
    f"pass; one that is hatched has fewer than {MIN_PAIRS} pairs. Embeddings that do not hold the age would show the "
    "same share in every cell."
)
GREY = "grey pixels"
SHOWN_BANDS = (*CHILDREN, ADULTS)
SHOWN_RATE = next(iter(FALSE_MATCH_RATES))  # on the terminal
LEAST_REACH = 1.0  # of the colours around the rate of all pairs, in powers of ten


def false_matches(one: Tested) -> list[Block]:
    """A heat map a model, false matches by age gap, and the rates of children and adults at each threshold."""
    having, lacking = gather(one, "false matches by age", "analysis", "false_matches_by_age", ANALYSED_JOIN)
    if not having:
        return lacking
    blocks: list[Block] = list(dict.fromkeys(who_they_are(one)))
    for rate in FALSE_MATCH_RATES:  # of the strictest ones few cells would have a figure
        if rows := rows_at(having, rate):
            blocks += [*heat_maps(one, rows, rate), gap_plot(one, rows, rate)]
            break
    return [*blocks, *rate_table(one, having), *lacking]


def who_they_are(one: Tested) -> Iterator[str]:
    """What is to be known of sets without identities."""
    for _, result in one.of_models:
        if people := words(result.get("people"), ""):
            left_out = {key: f"{figure(result, f'num_{key}_left_out') or 0:,}" for key in ("duplicates", "without_age")}
            yield (
                f"{figure(result, 'num_images') or 0:,} pictures; left out: {left_out['duplicates']} exact duplicates, "
                f"{left_out['without_age']} without an age. Who the people are is {sentence(people)} Somebody who is "
                "in the set twice makes these rates too high."
            )


def rows_at(having: Sequence[tuple[str, Tree]], rate: str) -> list[tuple[str, Tree, Tree]]:
    """Model, its false matches, and those at one rate, of the models that have a threshold there."""
    rows = [(model, part, branch(part, "at_fmr", rate)) for model, part in having]
    return [row for row in rows if figure(row[2], "threshold") is not None]


# ------------------------------------------------------------------------------------------------------------ drawings


def heat_maps(one: Tested, rows: Sequence[tuple[str, Tree, Tree]], rate: str) -> list[HeatMap]:
    """A heat map a model, all in the same colours."""
    centre = number_of(rate)
    drawn = [(model, names, *cells_of(part, row, centre)) for model, part, row in rows
             for names in [[str(name) for name in items(part, "age_groups")]]]  # fmt: skip
    known = [value for *_, values, _ in drawn for line in values for value in line if value is not None]
    reach = max([LEAST_REACH, *(abs(value - centre) for value in known)])
    return [
        HeatMap(f"{one.title}: {model}, false matches by age at FMR {rate}", "age group, years", names, values, texts,
                "log10 of the false match rate", centre, reach)
        for model, names, values, texts in drawn
        if names and len(values) == len(names)
    ]  # fmt: skip


def number_of(rate: str) -> float:
    """log10 of a rate such as "1e-3"."""
    return float(rate.removeprefix("1e"))


def cells_of(part: Tree, row: Tree, centre: float) -> tuple[list[list[float | None]], list[list[str]]]:
    """The value and the text of each cell; a cell that no pair passes is at most as dark as its number of pairs lets
    it be known."""
    grids = [items(part, "num_impostor_by_groups"), *(items(row, key) for key in CELL_KEYS)]
    cells = [
        [cell_of(*map(number, cell), centre) for cell in zip(*lines, strict=False)]
        for lines in zip(*grids, strict=False)
    ]
    return [[value for value, _ in line] for line in cells], [[text for _, text in line] for line in cells]


CELL_KEYS = ("num_false_matches_by_groups", "log10_fmr_by_groups")


def cell_of(
    num_impostor: float | None, num_passing: float | None, log10_fmr: float | None, centre: float
) -> tuple[float | None, str]:
    if log10_fmr is not None:
        few = (num_passing or 0) < MIN_FALSE_MATCHES
        return log10_fmr, f"({log10_fmr:.1f})" if few else f"{log10_fmr:.1f}"
    if num_passing == 0 and num_impostor is not None and num_impostor >= MIN_PAIRS:
        below = math.ceil(-10 * math.log10(num_impostor)) / 10
        return min(below, centre), f"<{below:.1f}"
    return None, ""


def gap_plot(one: Tested, rows: Sequence[tuple[str, Tree, Tree]], rate: str) -> Plot:
    names = list(branch(rows[0][2], "by_age_gap"))
    curves = [
        Curve(model, names, [figure(branch(row, "by_age_gap", name), "fmr") for name in names])
        for model, _, row in rows
    ]
    curves.append(Curve("all pairs", names, [float(rate)] * len(names), is_reference=True))
    title = f"{one.title}: false match rate by age gap at FMR {rate}"
    return Plot(title, "years between the pictures", "false match rate", curves, y_log=True)


# -------------------------------------------------------------------------------------------------------------- tables


def rate_table(one: Tested, having: Sequence[tuple[str, Tree]]) -> list[Block]:
    """Thresholds, and the rates of children and adults, for each rate of all pairs and each model."""
    rows: list[list[Cell]] = []
    missing: dict[str, None] = {}  # sentences, each once
    for rate in FALSE_MATCH_RATES:
        for model, part in with_grey(one, having):
            row = branch(part, "at_fmr", rate)
            bands = {f"both {band}": branch(row, "bands", band) for band in BANDS}
            ratios = {f"{band} / {ADULTS}": branch(row, "child_to_adult_ratios", band) for band in CHILDREN}
            reasons = {"": row, **bands, **ratios}
            missing |= {
                f"{what}: {tree['reason']}".removeprefix(": "): None
                for what, tree in reasons.items()
                if isinstance(tree.get("reason"), str)
            }
            if figure(row, "threshold") is not None:
                shown = [with_interval(tree, "ratio", in_times) for tree in ratios.values()]
                shown += [with_interval(tree, "fmr", in_powers) for tree in bands.values()]
                rows.append([f"FMR {rate}", model, f"{row['threshold']:.3f}", figure(row, "tar_percent"), *shown])
    lacking = [sentence(f"Missing: {'; '.join(missing)}")] if missing else []
    if not rows:
        return lacking
    used = [i for i in range(len(rows[0])) if i != TAR or any(row[TAR] is not None for row in rows)]
    header = ["all pairs", "model", "threshold, cosine", "TAR %", *ratios, *(f"FMR, {band}" for band in bands)]
    drawn = next((words(part.get("resampled"), "") for _, part in having), "")
    note = f"In brackets: 95 % intervals by drawing {drawn} with replacement, at the same threshold." if drawn else ""
    title = f"{one.title}: false match rates of children and adults"
    table = Table(title, [header[i] for i in used], [[row[i] for i in used] for row in rows], note)
    return [table, *lacking]


TAR = 3  # the column; sets of unnamed people have none


def with_grey(one: Tested, having: Sequence[tuple[str, Tree]]) -> list[tuple[str, Tree]]:
    """The models, and grey pixels as a baseline: of the same pictures, so those of the first model."""
    grey = (branch(result, "analysis", "false_matches_by_age", "grey_pixels") for _, result in one.of_models)
    return [*having, *((GREY, part) for part in list(filter(None, grey))[:1] if "at_fmr" in part)]


def in_powers(rate: float) -> str:
    """0.09 -> "9.0e-2"."""
    mantissa, _, exponent = f"{rate:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if rate else "0"


def in_times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio == 0 or ratio >= 10 else f"{ratio:.1f}"


def with_interval(tree: Tree, key: str, shown: Callable[[float], str]) -> str | None:
    """The figure and its interval."""
    value, low, high = (figure(tree, f"{key}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return None
    return shown(value) if low is None or high is None else f"{shown(value)} ({shown(low)} to {shown(high)})"


def false_match_table(report: Tree) -> list[str]:
    """What the terminal shows of all sets and models: a Markdown table below a sentence, and why sets that have nothing
    else have no figure."""
    rows, reasons = [], []
    for one in settings_of(report):
        having, _ = gather(one, "", "analysis", "false_matches_by_age", ANALYSED_JOIN)
        for model, part in with_grey(one, having):
            row = branch(part, "at_fmr", SHOWN_RATE)
            if figure(row, "threshold") is not None:
                rows.append([one.title, model, *shown_figures(row)])
            elif list(who_they_are(one)):
                reasons.append(f"left out: {one.title}, false matches by age, {model}: {row.get('reason')}")
    header = ["benchmark", "model", "threshold", "TAR %", *(f"both {band}" for band in SHOWN_BANDS),
              f"{CHILDREN[0]} / {ADULTS}"]  # fmt: skip
    heading = f"False match rates by age, at one threshold with FMR {SHOWN_RATE} over all ages:"
    return ([f"{heading}\n\n{aligned(header, rows, 2)}"] if rows else []) + reasons


def shown_figures(row: Tree) -> list[str]:
    cells = [("{:.3f}".format, figure(row, "threshold")), ("{:.2f}".format, figure(row, "tar_percent"))]
    cells += [(in_powers, figure(branch(row, "bands", band), "fmr")) for band in SHOWN_BANDS]
    cells.append((in_times, figure(branch(row, "child_to_adult_ratios", CHILDREN[0]), "ratio")))
    return ["" if value is None else shown(value) for shown, value in cells]
