"""What the dataset check of `prepare.py check` finds, for the screen and for a JSON file."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from data.alignment.template import HOW_TO_ALIGN
from data.check.image_scan import ImageScan, are_photographs, scan_images
from data.faces import Faces
from meta import IMAGE_SIZE
from utils.files import Progress, check_is_new, written_beside

Severity = Literal["ok", "note", "missing", "wrong"]
ReadWeights = Callable[[Path], str]  # what a weight file holds, in words; UserError for one that can't be used
NUM_SHOWN = 3  # examples on the screen
MAX_EXAMPLES = 1000  # in a finding, so in the JSON file
OTHER_COUNT = "fine for a part of it or for made-up faces; figures are then not comparable with published ones"


@dataclass(frozen=True)
class Finding:
    """One remark about one set or file: "wrong" makes figures false or stops a run, a "note" is worth knowing."""

    name: str
    severity: Severity
    what: str
    advice: str = ""  # what to do about it
    examples: tuple[str, ...] = ()  # names of pictures, folders or pairs, the first 1,000


@dataclass
class DatasetCheck:
    """Where to look and how, what was found, and what is compared at the end."""

    root: Path
    weights_root: Path
    quick: bool
    workers: int
    progress: Progress
    read_weights: ReadWeights | None
    findings: list[Finding] = field(default_factory=list)
    people: dict[str, set[str]] = field(default_factory=dict)  # names of identities of each set
    pictures: dict[str, list[tuple[Faces, ImageScan]]] = field(default_factory=dict)

    def report(self, name: str, severity: Severity, what: str, advice: str = "", examples: Iterable[str] = ()) -> None:
        kept = tuple(itertools.islice(examples, MAX_EXAMPLES))
        if kept:
            shown = ", ".join(map(repr, kept[:NUM_SHOWN])) + (", ..." if len(kept) > NUM_SHOWN else "")
            what += f" ({shown})"
        self.findings.append(Finding(name, severity, what, advice, kept))

    def ok(self, name: str, what: str) -> None:
        self.report(name, "ok", what)

    def note(self, name: str, what: str, advice: str, examples: Iterable[str] = ()) -> None:
        self.report(name, "note", what, advice, examples)

    def missing(self, name: str, what: str, advice: str) -> None:
        self.report(name, "missing", what, advice)

    def wrong(self, name: str, what: str, advice: str = "", examples: Iterable[str] = ()) -> None:
        self.report(name, "wrong", what, advice, examples)

    def scan(self, name: str, faces: Faces) -> ImageScan:
        """Reads all pictures of one index, reports what is wrong with single ones, and keeps the rest for comparing."""
        scan = scan_images(faces, self.quick, self.workers, self.progress, f"{name}: reading pictures")
        self.pictures.setdefault(name, []).append((faces, scan))
        self._report_failures(name, faces, scan)
        self._report_sizes(name, faces, scan)
        return scan

    def _report_failures(self, name: str, faces: Faces, scan: ImageScan) -> None:
        where, total = Path(faces.root).name, len(faces)
        if scan.failures:
            what = f"{where}: {len(scan.failures):,} of {total:,} pictures can't be decoded"
            named = (f"{faces.name(i)}: {reason}" for i, reason in scan.failures.items())
            self.wrong(name, what, "get them again, or remove them", named)
        else:
            how = "have a sound header (--quick: not decoded)" if self.quick else "can be decoded"
            self.ok(name, f"{where}: all {total:,} pictures {how}")

    def _report_sizes(self, name: str, faces: Faces, scan: ImageScan) -> None:
        sizes = Counter(map(tuple, scan.sizes[scan.sizes.any(axis=1)].tolist()))
        refused = are_photographs(sizes)
        sizes.pop((IMAGE_SIZE, IMAGE_SIZE), None)
        if not sizes:
            return
        kinds = [f"{width}x{height}: {count:,}" for (width, height), count in sizes.most_common()]
        shown = ", ".join(kinds[:NUM_SHOWN]) + (", ..." if len(kinds) > NUM_SHOWN else "")
        count = f"{sum(sizes.values()):,} of {len(faces):,} pictures"
        what = f"{Path(faces.root).name}: {count} are not {IMAGE_SIZE}x{IMAGE_SIZE} ({shown})"
        if refused:
            self.wrong(name, what, f"these are photographs and no aligned faces: align them ({HOW_TO_ALIGN})")
        else:
            self.note(name, what, "they are resized when read; faces that are not aligned give poor figures")


def is_wrong(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "wrong" for finding in findings)


def report_lines(findings: Sequence[Finding]) -> list[str]:
    """The findings as lines of text in columns: name, severity, what was found; below it what to do."""
    width = max((len(finding.name) for finding in findings), default=0) + 2
    lines = []
    for finding in findings:
        lines.append(f"{finding.name:{width}}{finding.severity:9}{finding.what}")
        if finding.advice:
            lines.append(f"{'':{width + 9}}-> {finding.advice}")
    return lines


def write_findings(path: str | Path, findings: Sequence[Finding], force: bool = False) -> None:
    """Writes the findings as JSON: {"wrong": bool, "findings": [...]}, with up to 1,000 examples each.

    Raises:
        UserError: `path` exists and `force` is not given.
    """
    check_is_new(path, force)
    content = {"wrong": is_wrong(findings), "findings": [asdict(finding) for finding in findings]}
    with written_beside(path, "w", encoding="ascii") as file:  # json escapes all else, names that are no UTF-8 too
        json.dump(content, file, indent=1)
        file.write("\n")
