"""evaluation/report/page.py: one page that is whole, escaped and accessible, whatever the report holds."""

import json
import re
from html.parser import HTMLParser

import pytest
from report_example import HOSTILE, SECTIONS, example_page, example_report, picture

from evaluation.report.page import NO_PICTURES, report_html, title_of
from evaluation.report.plots import COLOURS, GREY
from evaluation.report.reading import settings_of
from evaluation.report.section_summary import summary

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a test asks of a page: elements with their attributes, text, tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.tables: list[list[tuple[str, dict]]] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if "table" in self.open:
            self.tables[-1].append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(example_page())


def small(**changes) -> dict:
    """The report without what is drawn, which takes the time."""
    report = example_report()
    for model in report["models"]:
        for result in model["results"].values():
            result["analysis"] = {"errors": result["analysis"]["errors"]}
    return report | changes


def words_of(report, pictures=picture) -> str:
    return " ".join("".join(Page(report_html(report, pictures)).text).split())


def test_every_section_is_there_in_order_and_in_the_navigation_and_references_lead_somewhere(page):
    assert tuple(section["id"] for section in page.all("section")) == SECTIONS
    assert [link["href"] for link in page.all("a")] == ["#content", *(f"#{name}" for name in SECTIONS)]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes}
    used |= {attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes}
    assert used <= set(ids)


def test_what_screen_readers_need(page):
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("h1", "main", "nav", "header")] == [1, 1, 1, 1]
    kinds = {image["alt"].split(",")[0].split(":")[0] for image in page.all("img")}
    assert kinds == {"Face", "Line plot", "Step plot", "Bar chart", "Histogram", "Heat map"}
    assert len(page.tables) > 20
    for table in page.tables:
        assert table[0][0] == "caption"
        assert {attributes.get("scope") for tag, attributes in table if tag == "th"} == {"col", "row"}


def test_nothing_is_loaded_and_nothing_runs(page):
    assert {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'; "
            "img-src data:"} in page.all("meta")  # fmt: skip
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith("#"), tag
        assert "http" not in attributes.get("style", "")


def test_hostile_names_are_text(page):
    html = example_page()
    assert "<script" not in html.lower() and "\u202e" not in html and "\x1b" not in html
    assert HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b") in "".join(page.text)


def test_main_figures_reasons_and_sources_are_there(page):
    reply = "".join(page.text)
    report = example_report()
    result = report["models"][0]["results"]["fgnet"]
    rank1 = [column["rank1_percent"] for column in result["leave_one_out"].values()]
    assert len(rank1) == 4
    leaks = result["analysis"]["leaks"]
    eer = result["analysis"]["verification"]["figures"]["pooled_eer_percent"]
    assert all(f"{value:.2f}" in reply for value in (*rank1, eer, leaks["club"]["club_nats"]))
    sure = result["analysis"]["rank1"]
    assert f"{sure['rank1_percent_low']:.2f} to {sure['rank1_percent_high']:.2f}" in reply
    assert leaks["meaning"] in reply
    assert all(figure["source"] in reply and figure["setting"] in reply for figure in report["published"])
    assert "FAR 1e-3 needs 1,000 impostor pairs or more, there are 44" in reply  # a rate that lets no impostor pass
    assert "cacd_vs" in reply and f"folder {HOSTILE[:8]}" in reply  # what did not run


def test_a_difference_excludes_0_where_its_interval_does():
    reply = {"setting": "s", "title": "T", "a": "A", "b": "B"}
    for name, low, high in (("rank1", 0.5, 2.5), ("pooled_auc", -1.0, 2.0), ("pooled_eer", None, None)):
        key = f"{name}_difference_percentage_points"
        reply |= {key: 1.5, f"{key}_low": low, f"{key}_high": high}
        reply[f"{key}_interval_reason"] = low or "there are too few"
    shown = words_of({"comparisons": [reply]})
    assert "1 of 2 intervals exclude 0: T, rank-1 %, A less B (+1.50)." in shown
    assert "no interval: there are too few" in shown


def test_equal_reports_give_equal_pages():
    assert report_html(small(), picture) == report_html(json.loads(json.dumps(small())), picture)


def test_without_pictures_errors_are_named_only():
    page = Page(report_html(small(), None))
    assert not page.all("img") and NO_PICTURES in page.text
    error = small()["models"][0]["results"]["fgnet"]["analysis"]["errors"]["false_matches"][0]
    assert error["name_a"] in page.text and f"{error['cosine']:.4f}" in page.text


def test_pictures_that_are_none_or_no_picture_or_unreadable_are_said_to_lack():
    def unreadable(setting, name):
        raise OSError("gone")

    for pictures in (lambda *_: None, lambda *_: b"<svg onload=alert(1)>", unreadable):
        page = Page(report_html(small(), pictures))
        assert not page.all("img") and "no picture" in page.text


@pytest.mark.parametrize("report", [
    {}, {"models": []}, {"models": [{}], "comparisons": None, "published": {"reason": "none"}},
    {"models": [{"name": "A", "results": {"fgnet": {}}}]},
    {"models": [{"name": "A", "results": {"fgnet": {"analysis": {"reason": "turned off"}}}}]},
    {"models": [{"name": None, "results": {"s": {"analysis": {"verification": {"curve": {}, "histogram": 3}}}}}]},
    {"comparisons": [{"title": "T", "a": "A", "b": "B", "reason": "other pictures"}], "models": 5},
], ids=range(7))  # fmt: skip
def test_what_is_missing_does_not_break_the_page(report):
    page = Page(report_html(report, picture))
    assert tuple(section["id"] for section in page.all("section")) == SECTIONS


def test_each_part_may_be_absent_or_a_reason():
    for part in ("verification", "intervals", "errors", "cmc", "open_set", "age_gap", "younger_age", "mate_distance"):
        report = small()
        result = report["models"][0]["results"]["fgnet"]
        result["analysis"] = {part: {"reason": f"why not {part}"}}
        Page(report_html(report, None))
    for part in ("verification", "cmc", "open_set", "leaks", "errors"):
        report = {"models": [{"name": "A", "results": {"s": {"analysis": {part: {"reason": f"why not {part}"}}}}}]}
        assert f"why not {part}." in words_of(report)
    leaks = {part: {"reason": f"why not {part}"} for part in ("age_in_identity", "age_in_age", "club")}
    reply = words_of({"models": [{"name": "A", "results": {"s": {"analysis": {"leaks": leaks}}}}]})
    assert all(f"why not {part}." in reply for part in leaks)


def test_nothing_that_is_no_number_is_printed_as_one(page):
    report = small()
    for value in (float("nan"), float("inf"), None, "12", True):
        report["models"][0]["results"]["fgnet"]["leave_one_out"]["add"]["rank1_percent"] = value
        assert not re.search(r"\b(nan|None|inf|True)\b", words_of(report, None))
    assert not re.search(r"\b(nan|NaN|None|inf)\b", "".join(page.text))


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb by WCAG 2."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_words_and_curves_stand_out_from_the_paper_in_light_and_dark():
    """WCAG AA: 4.5 for text, also on shaded heads of tables; 3 for what is drawn, always on white."""
    colours_in = re.compile(r"--(\w+): (#[0-9a-f]{6})").findall
    light_part, dark_part = example_page().split("@media")[:2]
    light, dark = dict(colours_in(light_part)), dict(colours_in(dark_part))
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    for colours in (light, light | dark):
        for name in ("ink", "muted", "link"):
            assert contrast(colours[name], colours["paper"]) >= 4.5, name
        assert contrast(colours["ink"], colours["shade"]) >= 4.5
    assert all(contrast(colour, "#ffffff") >= 3 for colour in (*COLOURS, GREY))
    assert dark["paper"] != light["paper"]


def test_a_page_of_drawn_faces_alone_has_no_published_figure():
    report = example_report()
    for model in report["models"]:
        for result in model["results"].values():
            result |= {"drawn": True, "benchmark": None}
    report["comparisons"] = []
    blocks = [str(block) for block in summary(report, settings_of(report))]
    assert not any(figure["source"] in block for figure in report["published"] for block in blocks)
    assert "All faces here are drawn: published figures are of photographs." in blocks
    assert title_of(report).endswith("(drawn faces)") and "drawn" not in title_of(example_report())
