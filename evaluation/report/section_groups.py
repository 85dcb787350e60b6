"""Groups of models over several seeds: the same rows for the terminal, results.md and the head of the page."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.report.blocks import Block, Heading, Table
from evaluation.report.reading import Tested, Tree, branch, dicts, figure, items, words
from evaluation.report.tables import aligned

WORDS = (
    "Mean ± deviation over the seeds of a group, views concatenated. Differences are taken pair by pair: a pair is a "
    "model of either group with the same seed. Intervals (Student's t) and p-values say how far a difference would "
    "move with other seeds, not with other people. p is the share of all ways to swap the models of pairs that give a "
    "mean difference at least as far from 0."
)
NUM_TEXT_COLUMNS = 3


def group_rows(groups: Tree) -> tuple[list[str], list[list[str | None]]]:
    """Header and rows: a figure and group each, with the difference to the first group."""
    first = words(groups.get("first"), "the first")
    header = ["benchmark", "measure", "group", "mean ± deviation", "seeds", f"less {first}", "95 % interval", "p"]
    rows: list[list[str | None]] = []
    for entry in dicts(groups, "figures"):
        title, measure, group = (words(entry.get(key), "not stated") for key in ("title", "measure", "group"))
        decimals, difference = 2 if "%" in measure else 3, branch(entry, "difference")
        mean, deviation, num_seeds = (figure(entry, key) for key in ("mean", "deviation", "num_seeds"))
        apart, half_width, p_value = (figure(difference, key) for key in ("mean", "half_width", "p_value"))
        level = [shown(mean, f".{decimals}f"), shown(deviation, f".{decimals}f")]
        ends = [shown(end, f"+.{decimals}f") for end in limits(apart, half_width)]
        compared = [shown(apart, f"+.{decimals}f"), " to ".join(ends) or None, shown(p_value, ".3g")]
        rows.append([title, measure, group, " ± ".join(filter(None, level)), shown(num_seeds, "g"),
                     *(["", "", ""] if group == first else compared)])  # fmt: skip
    if not any(row[5] for row in rows):  # one group alone
        return header[:5], [row[:5] for row in rows]
    return header, rows


def shown(value: float | None, as_format: str) -> str | None:
    return None if value is None else format(value, as_format)


def limits(middle: float | None, half_width: float | None) -> tuple[float, ...]:
    """Both ends of an interval; empty where there is none."""
    return () if middle is None or half_width is None else (middle - half_width, middle + half_width)


def group_remarks(groups: Tree) -> list[str]:
    """How far the seeds distinguish the groups, and which figures lack pairs."""
    differences = [(entry, branch(entry, "difference")) for entry in dicts(groups, "figures")]
    differences = [(entry, difference) for entry, difference in differences if difference]
    num_seeds = max((len(items(member, "models")) for member in dicts(groups, "members")), default=0)
    if num_seeds < 2:
        return ["A group has one seed: there is no deviation and no interval."]
    remarks = []
    known = [difference["is_beyond_chance"] for _, difference in differences
             if isinstance(difference.get("is_beyond_chance"), bool)]  # fmt: skip
    if known:
        remarks.append(f"{sum(known)} of {len(known)} intervals leave 0 out; one in twenty does so by chance alone. "
                       f"With {num_seeds} pairs no p-value is below {2 / 2**num_seeds:.2g}.")  # fmt: skip
    for entry, difference in differences:
        if (num_pairs := figure(difference, "num_seeds")) is not None and num_pairs < num_seeds:
            place = ", ".join(words(entry.get(key), "not stated") for key in ("title", "measure", "group"))
            remarks.append(f"{place}: {num_pairs} of {num_seeds} pairs have this figure.")
    return remarks


def group_text(groups: Tree) -> str:
    """The table as Markdown that lines up on a terminal, and the remarks below it."""
    header, rows = group_rows(groups)
    cells = [[cell or "" for cell in row] for row in rows]
    return "\n\n".join([aligned(header, cells, NUM_TEXT_COLUMNS), *group_remarks(groups)])


def group_blocks(report: Tree) -> list[Block]:
    """The table, and which models are a pair; nothing where no groups were tested."""
    groups = branch(report, "groups")
    members = dicts(groups, "members")
    header, rows = group_rows(groups)
    if not members or not rows:
        return []
    names = [words(member.get("name"), "not stated") for member in members]
    pairs = [
        [f"{number}", *(words(model, "not stated") for model in models)]
        for number, models in enumerate(zip(*(items(member, "models") for member in members), strict=False), 1)
    ]
    return [
        Heading("Groups over their seeds"),
        WORDS,
        Table("Groups", header, rows, " ".join(group_remarks(groups))),
        Table("Pairs of models", ["pair", *names], pairs),
        Heading("Each model"),
    ]


def first_of_groups(report: Tree, tested: Sequence[Tested]) -> list[Tested]:
    """The results with one model a group, the first that ran; as they are where no groups were tested."""
    groups = [items(member, "models") for member in dicts(branch(report, "groups"), "members")]
    if not groups:
        return list(tested)
    return [
        Tested(one.name, one.title, one.benchmark,
               [next(of_model for of_model in one.of_models if of_model[0] in models) for models in groups
                if any(name in models for name, _ in one.of_models)])
        for one in tested
    ]  # fmt: skip
