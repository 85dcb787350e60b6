"""The report in a real browser: it renders, says nothing on the console, and fits a phone."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_example import SECTIONS, example_page

from evaluation.report.page import POLICY

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on this machine"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--enable-logging=stderr", "--v=0",
)  # fmt: skip
# No script runs on the page itself; here one reports how wide it is, and which words in header cells break or
# reach out of their cell.
REPORT = """<script>
const spoilt = new Set();
for (const cell of document.querySelectorAll("thead th")) {
  const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), limits = cell.getBoundingClientRect();
  while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/\\S+/g)) {
    const range = document.createRange();
    range.setStart(texts.currentNode, word.index);
    range.setEnd(texts.currentNode, word.index + word[0].length);
    const { left, right } = range.getBoundingClientRect();
    if (range.getClientRects().length > 1 || left < limits.left || right > limits.right) spoilt.add(word[0]);
  }
}
parent.postMessage([document.documentElement.scrollWidth, innerWidth, [...spoilt].join(" ")].join("|"), "*");
</script>"""


def browse(page: str, folder: Path, *flags: str) -> tuple[str, str]:
    """What the browser prints and what it logs of the page."""
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_every_section_is_rendered_and_the_console_is_silent(tmp_path):
    page = example_page()
    dom, log = browse(page, tmp_path, "--dump-dom")
    for name in SECTIONS:
        assert f'<section id="{name}"' in dom
    assert "</html>" in dom and dom.count("<img") == page.count("<img")
    assert "CONSOLE" not in log


@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_the_picture_of_the_page_is_not_blank(tmp_path, scheme):
    shot = tmp_path / "shot.png"
    width = 390 if scheme else 1280
    flags = f"--window-size={width},3000", f"--blink-settings=preferredColorScheme={scheme}"
    browse(example_page(), tmp_path, f"--screenshot={shot}", *flags)
    with Image.open(shot) as image:
        grey = np.asarray(image.convert("L"))
    assert grey.shape == (3000, width) and grey.std() > 10
    assert (np.median(grey) > 200) == bool(scheme)


def test_nothing_scrolls_sideways_but_tables_and_no_word_in_a_header_cell_breaks(tmp_path):
    """9: from a phone's width on."""
    page, widths = example_page(), (360, 1280)
    assert POLICY in page
    measured = html.escape(page.replace(POLICY, "").replace("</body>", f"{REPORT}</body>"))
    # A window is 500 wide at least, a frame is as wide as it is set to be.
    frames = (f'<iframe style="border: 0; width: {width}px; height: 3000px" srcdoc="{measured}"></iframe>'
              for width in widths)  # fmt: skip
    listen = "<script>addEventListener('message', event => { document.title += event.data + ';' })</script>"
    dom, _ = browse(listen + "".join(frames), tmp_path, "--dump-dom", "--virtual-time-budget=5000")
    found = re.search(r"<title>(.*);</title>", dom)[1].split(";")
    of_widths = {int(given): (int(needed), spoilt) for needed, given, spoilt in (one.split("|") for one in found)}
    assert set(of_widths) == set(widths)
    assert all(needed <= width and spoilt == "" for width, (needed, spoilt) in of_widths.items()), of_widths
