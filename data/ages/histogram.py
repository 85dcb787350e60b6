"""How old the faces of data sets are: a picture of histograms, and the share of each age group."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.faces import UNKNOWN, age_groups_of
from meta import AGE_GROUP_NAMES, AGE_GROUP_UPPER_EDGES, NUM_AGE_GROUPS, UserError
from utils.files import check_is_new, written_beside

LAST_YEAR = 100  # of the axis; older faces are drawn there
WIDTH, PANEL_HEIGHT, MARGINS = 9.0, 2.0, 1.2  # inches; margins above and below all panels
DOTS_PER_INCH = 120
MAX_NAME_LENGTH = 60  # characters in a title
MAX_PANELS = 40  # PNG pictures have a largest height, and people a smallest patience
BAR_COLOUR, EDGE_COLOUR, TEXT_COLOUR = "#4477aa", "#999999", "#333333"


def group_shares(ages: np.ndarray) -> dict:
    """Of (N,) ages in years, -1 where unknown: counts, and the percent of each age group among the known ones.

    {"num_ages", "num_unknown", "median_years", "group_shares_percent": {"0-12": ..., ..., "66+": ...}}; without any
    known age the median is None and every share 0.
    """
    ages = np.asarray(ages)
    known = ages[ages != UNKNOWN]
    counts = np.bincount(age_groups_of(known, len(known)), minlength=NUM_AGE_GROUPS)
    shares = 100 * counts / max(1, len(known))
    return {
        "num_ages": len(known),
        "num_unknown": len(ages) - len(known),
        "median_years": float(np.median(known)) if len(known) else None,
        "group_shares_percent": dict(zip(AGE_GROUP_NAMES, shares.tolist(), strict=True)),
    }


def share_lines(root: str, ages: np.ndarray) -> list[str]:
    """Text lines: number and median of the (N,) ages of the pictures in `root`, and the share of each group.

    Raises:
        UserError: no age is known.
    """
    shares = group_shares(ages)
    if not shares["num_ages"]:
        raise UserError(f"no picture in {root!r} got an age: check the pictures and the source of the ages.")
    unknown = f", {shares['num_unknown']:,} pictures without an age" if shares["num_unknown"] else ""
    return [
        f"{root}: {shares['num_ages']:,} ages, median {shares['median_years']:g} years{unknown}",
        *(f"{group:>6} {share:6.2f} %" for group, share in shares["group_shares_percent"].items()),
    ]


def draw_age_histograms(ages_of: Mapping[str, np.ndarray], path: str | Path, force: bool = False) -> None:
    """A PNG with one panel a data set: `ages_of` maps its name to its (N,) ages in years, -1 where unknown.

    All panels have the same axis of years; the shares of the age groups are printed in percent.

    Raises:
        UserError: for no data set or more than 40, one without known ages, or a file that exists without `force`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not 1 <= len(ages_of) <= MAX_PANELS:
        raise UserError(f"{len(ages_of)} data sets cannot be drawn: give 1 to {MAX_PANELS}.")
    for name, ages in ages_of.items():
        if not group_shares(ages)["num_ages"]:
            raise UserError(f"The data set {name!r} has no known ages to draw: give it ages first, or leave it out.")
    check_is_new(path, force)
    figure = Figure(figsize=(WIDTH, MARGINS + PANEL_HEIGHT * len(ages_of)), dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(len(ages_of), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, ages) in zip(panels, ages_of.items(), strict=True):
        _draw(panel, name, np.asarray(ages))
    panels[-1].set_xlabel(f"age in years ({LAST_YEAR}: and above)")
    figure.suptitle("Ages of faces, and the share of each age group", fontsize=11, color=TEXT_COLOUR)
    with written_beside(path) as file:
        canvas.print_png(file, metadata={"Software": None})  # the same ages give the same bytes


def _draw(panel, name: str, ages: np.ndarray) -> None:
    facts = group_shares(ages)
    known = np.clip(ages[ages != UNKNOWN], 0, LAST_YEAR)
    percent = 100 * np.bincount(known, minlength=LAST_YEAR + 1) / len(known)
    panel.bar(np.arange(LAST_YEAR + 1), percent, width=1.0, color=BAR_COLOUR, linewidth=0)
    panel.set_xlim(-0.5, LAST_YEAR + 0.5)
    panel.set_ylim(0, max(percent.max() * 1.35, 1e-9))  # room for the shares
    panel.set_ylabel("% of faces")
    panel.set_xticks(range(0, LAST_YEAR + 1, 10))
    panel.spines[["top", "right"]].set_visible(False)
    for edge in AGE_GROUP_UPPER_EDGES:
        panel.axvline(edge + 0.5, color=EDGE_COLOUR, linewidth=0.8, linestyle="--")
    edges = (-1, *AGE_GROUP_UPPER_EDGES, LAST_YEAR)
    for lower, upper, (group, share) in zip(edges, edges[1:], facts["group_shares_percent"].items(), strict=False):
        panel.text(
            (lower + 1 + upper) / 2, 0.98, f"{group}\n{_in_words(share)}", transform=panel.get_xaxis_transform(),
            ha="center", va="top", fontsize=7.5, color=TEXT_COLOUR,
        )  # fmt: skip
    unknown = f", {facts['num_unknown']:,} without an age" if facts["num_unknown"] else ""
    title = f"{_drawable(name)}: {facts['num_ages']:,} ages, median {facts['median_years']:g}{unknown}"
    panel.set_title(title, fontsize=9, loc="left", parse_math=False)  # a $ in a name begins no formula


def _in_words(share: float) -> str:
    """Two digits distinguish a rare group from an empty one."""
    return "0 %" if share == 0 else "< 0.01 %" if share < 0.01 else f"{share:.2f} %" if share < 1 else f"{share:.1f} %"


def _drawable(name: str) -> str:
    """The beginning of the name, what no font can draw escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name[:MAX_NAME_LENGTH])
