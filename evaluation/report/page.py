"""results.json -> one HTML page with tables, plots and pairs of pictures; it needs no network, file or script."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from itertools import count, groupby
from typing import Any, TypeAlias

from evaluation.report.plots import Cell, Histogram, Plot, Table, data_tables, drawing, legend, plain, remarks
from evaluation.report.sections import Block, Heading, Pair, Pairs, Section, Terms, sections_of
from meta import UserError

Pictures: TypeAlias = Callable[[str, str], "bytes | None"]

TITLE = "Face recognition across ages: test report"
SIGNATURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NO_PICTURES = "Pictures were left out of this report: errors are listed by name only."
NOT_AVAILABLE = '<abbr title="not available">n/a</abbr>'
NUMBER = re.compile(r"[+-]?[\d.,]+( to [+-]?[\d.,]+)?")


def report_html(report: dict[str, Any], pictures: Pictures | None) -> str:
    """The page. `report` is what results.json holds; `pictures(setting, name)` gives a JPEG or PNG, or None.

    Without `pictures` the errors are listed by name. Equal reports give equal pages.
    """
    sections = sections_of(report)
    writer = _Writer(pictures)
    links = "\n".join(f'<li><a href="#{section.id}">{text(section.title)}</a></li>' for section in sections)
    body = "\n".join(writer.section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{TITLE}</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{TITLE}</h1>
</header>
<nav aria-label="Sections">
<ul>
{links}
</ul>
</nav>
<main id="content">
{body}
</main>
</body>
</html>
"""


def text(value: Any) -> str:
    """Anything as text of a page: one line, nothing that steers, escaped."""
    return html.escape(plain(value if isinstance(value, str) else str(value)))


class _Writer:
    """Blocks -> HTML; numbers the plots, since their ids must differ."""

    def __init__(self, pictures: Pictures | None) -> None:
        self._pictures = pictures
        self._numbers = count(1)

    def section(self, section: Section) -> str:
        parts = [f'<section id="{section.id}" aria-labelledby="{section.id}-title">']
        parts.append(f'<h2 id="{section.id}-title">{text(section.title)}</h2>')
        if self._pictures is None and any(isinstance(block, Pairs) for block in section.blocks):
            parts.append(f"<p>{NO_PICTURES}</p>")
        for is_plot, blocks in groupby(section.blocks, lambda block: isinstance(block, Plot | Histogram)):
            written = "\n".join(self._block(block) for block in blocks)
            parts.append(f'<div class="plots">\n{written}\n</div>' if is_plot else written)
        return "\n".join([*parts, "</section>"])

    def _block(self, block: Block) -> str:
        if isinstance(block, str):
            return f"<p>{text(block)}</p>"
        if isinstance(block, Heading):
            return f"<h3>{text(block.text)}</h3>"
        if isinstance(block, Table):
            return table_html(block)
        if isinstance(block, Terms):
            terms = "\n".join(f"<dt>{text(term)}</dt><dd>{text(meaning)}</dd>" for term, meaning in block.items)
            return f"<dl>\n{terms}\n</dl>"
        return self._pairs(block) if isinstance(block, Pairs) else self._plot(block)

    def _plot(self, plot: Plot | Histogram) -> str:
        prefix = f"plot{next(self._numbers)}"
        named = "".join(f"<li>{swatch}{html.escape(label)}</li>" for swatch, label in legend(plot, f"{prefix}-legend"))
        tables = "\n".join(map(table_html, data_tables(plot)))
        details = f"<details>\n<summary>Data as a table</summary>\n{tables}\n</details>" if tables else ""
        parts = [
            f"<figcaption>{text(plot.title)}</figcaption>",
            drawing(plot, prefix),
            f'<ul class="legend">{named}</ul>' if named else "",
            *(f'<p class="note">{text(remark)}</p>' for remark in remarks(plot)),
            details,
        ]
        return "\n".join(["<figure>", *filter(None, parts), "</figure>"])

    def _pairs(self, block: Pairs) -> str:
        if self._pictures is None:
            header = ["first picture", "age", "second picture", "age", "cosine"]
            rows = [[p.names[0], p.ages[0], p.names[1], p.ages[1], p.cosine] for p in block.pairs]
            return table_html(Table(block.caption, header, rows, decimals=4))
        pairs = "\n".join(f"<li>{self._pair(block.setting, pair)}</li>" for pair in block.pairs)
        return f'<h4>{text(block.caption)}</h4>\n<ol class="pairs">\n{pairs}\n</ol>'

    def _pair(self, setting: str, pair: Pair) -> str:
        sides = "".join(self._picture(setting, *side) for side in zip(pair.names, pair.ages, strict=True))
        score = "cosine not available" if pair.cosine is None else f"cosine {pair.cosine:.4f}"
        return f'<div class="pair">{sides}</div><p class="score">{score}</p>'

    def _picture(self, setting: str, name: str, age: Cell) -> str:
        caption = f"{text(name)}, {'age not known' if age is None else f'{text(age)} years'}"
        content = _picture_bytes(self._pictures, setting, name)
        kind = next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)
        if kind is None:
            shown = '<span class="missing">no picture</span>'
        else:
            address = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
            shown = f'<img src="{address}" alt="Face, {caption}" width="112" height="112">'
        return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _picture_bytes(pictures: Pictures, setting: str, name: str) -> bytes:
    """b"" for a picture that is not there or can no longer be read: the report does without it."""
    try:
        return pictures(setting, name) or b""
    except (UserError, OSError):
        return b""


# --------------------------------------------------------------------------------------------------------------- tables


def table_html(table: Table) -> str:
    """A table in a box that scrolls by itself, its caption also the box's name."""
    numeric = [_is_numeric([row[i] for row in table.rows]) for i in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{_side(is_n)}>{text(name)}</th>' for name, is_n in zip(table.header, numeric, strict=True)
    )
    rows = "\n".join(_row_html(row, numeric, table.decimals) for row in table.rows)
    note = f'<p class="note">{text(table.note)}</p>' if table.note else ""
    return f"""<div class="scroll" role="region" aria-label="{text(table.caption)}" tabindex="0">
<table>
<caption>{text(table.caption)}</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
{note}""".rstrip()


def _row_html(row: Sequence[Cell], numeric: Sequence[bool], decimals: int) -> str:
    first, *others = (_cell(value, decimals) for value in row)
    cells = "".join(f"<td{_side(is_n)}>{cell}</td>" for cell, is_n in zip(others, numeric[1:], strict=True))
    return f'<tr><th scope="row"{_side(numeric[0])}>{first}</th>{cells}</tr>'


def _side(is_numeric: bool) -> str:
    return ' class="n"' if is_numeric else ""


def _is_numeric(values: Sequence[Cell]) -> bool:
    """Whether a column stands right: numbers, intervals and gaps alone."""
    return all(not isinstance(value, str) or NUMBER.fullmatch(value) for value in values) and bool(values)


def _cell(value: Cell, decimals: int) -> str:
    if value is None or value != value:  # NaN differs from itself
        return NOT_AVAILABLE
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int) or float(value).is_integer() and abs(value) >= 1e4:
        return f"{value:,.0f}"
    shown = f"{value:,.{decimals}f}"
    # What is not 0 must not read as 0.
    return f"{value:.2g}" if value and float(shown.replace(",", "")) == 0 else shown


# ---------------------------------------------------------------------------------------------------------------- style

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1c2128; --muted: #59616d; --rule: #d6dae1; --shade: #f4f6f8; --link: #0b57a4;
  --c0: #1b5fa8; --c1: #b3470f; --c2: #2c7a3d; --c3: #8b3fa0; --c4: #806000; --c5: #a8325a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --ink: #e6e9ee; --muted: #a7afbb; --rule: #39414c; --shade: #1d232a; --link: #8cc2ff;
    --c0: #7db8f5; --c1: #f2a36b; --c2: #7fce8f; --c3: #d39be6; --c4: #e0c060; --c5: #f292b0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 2px solid var(--rule); }
h3 { font-size: 1.1rem; margin: 1.75rem 0 .5rem; }
h4 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
p { max-width: 46rem; margin: .6rem 0; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; background: var(--paper); padding: .5rem 1rem; }
.skip:focus { left: .5rem; top: .5rem; z-index: 1; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; padding: 0; list-style: none; }
nav a { display: inline-block; padding: .3rem 0; }
.note { color: var(--muted); font-size: .875rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: .75rem 0; }
table {
  width: max-content; border-collapse: collapse; font-size: .875rem; line-height: 1.4; overflow-wrap: break-word;
}
caption { text-align: left; font-weight: 600; padding: .25rem 0 .4rem; }
th, td {
  padding: .35rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top;
  max-width: 22rem; unicode-bidi: isolate;
}
thead th { max-width: 6.5rem; vertical-align: bottom; background: var(--shade); border-bottom: 2px solid var(--rule); }
tbody th { font-weight: 500; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.n { white-space: nowrap; }
abbr { color: var(--muted); text-decoration: none; }
figure { margin: 0; min-width: 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1.5rem 2rem; }
.plots figcaption { font-weight: 600; margin: .5rem 0; }
svg.plot { display: block; width: 100%; height: auto; font-family: inherit; }
.legend {
  display: flex; flex-wrap: wrap; gap: .15rem 1.25rem; list-style: none; margin: .4rem 0; padding: 0;
  font-size: .875rem;
}
.legend li { display: flex; align-items: center; gap: .5rem; min-width: 0; unicode-bidi: isolate; }
svg.swatch { width: 2.4rem; height: 1rem; flex: none; }
summary { cursor: pointer; color: var(--link); font-size: .875rem; padding: .3rem 0; }
.pairs {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr)); gap: 1rem;
  margin: .5rem 0; padding: 0; list-style: none;
}
.pairs li { background: var(--shade); border-radius: .4rem; padding: .75rem; min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }
.pair img, .missing { display: block; width: 100%; max-width: 112px; height: auto; aspect-ratio: 1; }
.missing { border: 1px dashed var(--muted); color: var(--muted); font-size: .8rem; padding: .5rem; }
.pair figcaption { font-size: .8rem; line-height: 1.35; margin-top: .3rem; unicode-bidi: isolate; }
.score { margin: .5rem 0 0; font-size: .875rem; font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: minmax(8rem, 12rem) 1fr; gap: .4rem 1.25rem; max-width: 52rem; }
dt { font-weight: 600; }
dd { margin: 0; }
@media (max-width: 34rem) {
  dl { display: block; }
  dd { margin: 0 0 .6rem; }
  th, td { padding: .3rem .5rem; max-width: 14rem; }
  thead th { max-width: 6.5rem; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print {
  :root {
    color-scheme: light; --paper: #ffffff; --ink: #000000; --muted: #444444; --rule: #bbbbbb;
    --shade: #ffffff; --link: #000000;
    --c0: #1b5fa8; --c1: #b3470f; --c2: #2c7a3d; --c3: #8b3fa0; --c4: #806000; --c5: #a8325a;
  }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .skip, summary { display: none; }
  .scroll { overflow: visible; }
  table { width: auto; font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; overflow-wrap: anywhere; white-space: normal; }
  figure, .pairs li, tr { break-inside: avoid; }
  h2, h3, h4, caption { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""
