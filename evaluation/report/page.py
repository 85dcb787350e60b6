"""results.json -> one HTML page with tables, plots and pairs of pictures; it needs no network, file or script.

The page itself is the template page.html beside this module; the values that go into it are made here.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
from markupsafe import Markup

from evaluation.report.blocks import Block, Cell, Drawing, Pairs, Table, plain
from evaluation.report.plots import data_tables, in_words, remarks, svg_of
from evaluation.report.reading import settings_of
from evaluation.report.sections import sections_of
from meta import UserError

Pictures: TypeAlias = Callable[[str, str], "bytes | None"]

TITLE = "Face recognition across ages: test report"
SIGNATURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NO_PICTURES = "Pictures were left out of this report: errors are listed by name only."
DIGITS = r"[+-]?[\d.,]+(?:e-?\d+)?"
NUMBER = re.compile(rf"{DIGITS}(( to| \+-) {DIGITS})?( \({DIGITS} to {DIGITS}\))?")


def report_html(report: dict[str, Any], pictures: Pictures | None) -> str:
    """The page. `report` is what results.json holds; `pictures(setting, name)` gives a JPEG or PNG, or None.

    Without `pictures` the errors are listed by name. Equal reports give equal pages.
    """
    page = _template().render(
        title=title_of(report),
        policy=Markup(POLICY),
        sections=sections_of(report),
        has_pictures=pictures is not None,
        no_pictures=NO_PICTURES,
        picture_address=lambda setting, name: picture_address(pictures, setting, name),
    )
    return page.lstrip()


def title_of(report: dict[str, Any]) -> str:
    """The page's title, which says where faces were drawn by program."""
    drawn = [one.drawn for one in settings_of(report)]
    return TITLE + (" (drawn faces)" if drawn and all(drawn) else " (partly drawn faces)" if any(drawn) else "")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # every value, also those of names that look like HTML
        finalize=lambda value: value if isinstance(value, Markup) else plain(str(value)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["groupby_kind"] = _by_kind
    environment.globals |= {
        "cell": cell, "numeric_columns": numeric_columns, "pair_table": pair_table, "plot_address": plot_address,
        "data_tables": data_tables, "in_words": in_words, "remarks": remarks,
    }  # fmt: skip
    return environment.get_template("page.html")


def _by_kind(blocks: list[Block]) -> list[tuple[str, list[Block]]]:
    """Neighbouring blocks of a kind together: plots stand side by side."""

    def kind(block: Block) -> str:
        return "Plot" if isinstance(block, Drawing) else type(block).__name__

    return [(name, list(of_kind)) for name, of_kind in groupby(blocks, kind)]


# ------------------------------------------------------------------------------------------------------------- pictures


def plot_address(plot: Drawing) -> str:
    """The drawing as a data address, "" where there is nothing to draw."""
    content = svg_of(plot)
    return _address("svg+xml", content) if content else ""


def picture_address(pictures: Pictures, setting: str, name: str) -> str:
    """A picture as a data address, "" for one that is not there, is no picture or can no longer be read."""
    try:
        content = pictures(setting, name) or b""
    except (UserError, OSError):
        return ""
    kind = next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)
    return _address(kind, content) if kind else ""


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


# --------------------------------------------------------------------------------------------------------------- tables


def pair_table(block: Pairs) -> Table:
    """Pairs of pictures by name."""
    header = ["first picture", "age", "second picture", "age", "cosine"]
    rows = [[pair.names[0], pair.ages[0], pair.names[1], pair.ages[1], pair.cosine] for pair in block.pairs]
    return Table(block.caption, header, rows, decimals=4)


def numeric_columns(table: Table) -> list[bool]:
    """Which columns are right-aligned: those of numbers, intervals and gaps alone."""
    return [
        bool(table.rows) and all(not isinstance(row[i], str) or NUMBER.fullmatch(row[i]) for row in table.rows)
        for i in range(len(table.header))
    ]


def cell(value: Cell, decimals: int) -> str | None:
    """The text of a cell; None where there is no figure."""
    if value is None or value != value:  # NaN differs from itself
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int) or float(value).is_integer() and abs(value) >= 1e4:
        return f"{value:,.0f}"
    shown = f"{value:,.{decimals}f}"
    # What is not 0 must not read as 0.
    return f"{value:.2g}" if value and float(shown.replace(",", "")) == 0 else shown
