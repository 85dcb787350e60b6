"""FG-NET as released -> ID_processed_FGNET."""

import re
from dataclasses import dataclass
from pathlib import Path

from data.alignment.landmarks import read_pts
from data.finding import find_below, find_pictures
from data.releases.aligned_folders import Plan
from data.releases.flags import Align
from data.releases.names import match_name
from data.releases.points import landmark_folder, point_finder, points_by_stem
from meta import BENCHMARKS

FGNET_NAME = re.compile(r"(\d{3})a(\d{2})([ab]?)\.(jpe?g)", re.IGNORECASE | re.ASCII)


def plan_fgnet(raw: Path, landmarks: Path | None = None, already_aligned: bool = False) -> Plan:
    """FG-NET: images/001A02.JPG with points/001a02.pts -> ID_processed_FGNET/001/001A02.JPG."""
    benchmark = BENCHMARKS["fgnet"]
    plan = Plan(benchmark.title, benchmark.unpacked_into, True, [raw, landmarks])
    pictures = find_below(raw, "images", directory=True) or raw
    own = None
    if landmarks is None and not already_aligned:
        own = points_by_stem(landmark_folder(raw, "points"), ".pts", lambda path: read_pts(path, "fgnet"))
    find_points = point_finder(landmarks, already_aligned, own)
    for name in find_pictures(pictures):
        if parts := match_name(plan, FGNET_NAME, name, "001A02.JPG"):
            identity, age, letter, extension = parts.groups()
            # Upper-case A and extension, lower-case letter: the published form, in which the ages are found.
            target = f"{identity}/{identity}A{age}{letter.lower()}.{extension.upper()}"
            plan.add(pictures / name, name, [target], find_points)
    return plan


@dataclass(frozen=True)
class AlignFgnet(Align):
    """FG-NET as released (images and points) -> ID_processed_FGNET."""

    def plans(self) -> list[Plan]:
        return [plan_fgnet(self.raw, self.landmarks, self.already_aligned)]
