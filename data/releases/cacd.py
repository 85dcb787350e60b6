"""CACD as released -> a training set; CACD-VS -> its pictures and the list of pairs by its rule."""

import re
from dataclasses import dataclass
from pathlib import Path

from data.pairs import pairs_by_rule
from data.releases.aligned_folders import Plan
from data.releases.flags import Align, check_folder_name
from data.releases.pair_sets import add_pairs, benchmark_places
from data.releases.points import point_finder
from data.releases.training_sets import add_training_set
from meta import BENCHMARKS

CACD_NAME = re.compile(r"(?P<age>\d{1,3})_(?P<person>.+)_\d{4}\.jpe?g", re.IGNORECASE | re.ASCII)


def plan_cacd(
    raw: Path, landmarks: Path | None = None, already_aligned: bool = False, training_folder: str = "CACD_with_age"
) -> Plan:
    """CACD: 53_Robin_Williams_0001.jpg -> a training set, one folder a person."""
    plan = Plan("CACD for training", training_folder, True, [raw, landmarks])
    find_points = point_finder(landmarks, already_aligned, None)
    add_training_set(plan, raw, CACD_NAME, "53_Robin_Williams_0001.jpg", find_points)
    return plan


def plan_cacd_vs(raw: Path, landmarks: Path | None = None, already_aligned: bool = False) -> Plan:
    """CACD-VS: NNNN_0.jpg and NNNN_1.jpg -> CACD_VS/processed_CACDVS_2 and the list of 4,000 pairs by its rule."""
    benchmark = BENCHMARKS["cacd_vs"]
    plan = Plan(benchmark.title, benchmark.unpacked_into, False, [raw, landmarks])
    find_points = point_finder(landmarks, already_aligned, None)
    add_pairs(plan, raw, pairs_by_rule(benchmark), *benchmark_places(benchmark), find_points)
    return plan


@dataclass(frozen=True)
class AlignCacd(Align):
    """CACD (53_Robin_Williams_0001.jpg) -> a training set, one folder a person."""

    training_folder: str = "CACD_with_age"
    """Name of the folder below --output."""

    def plans(self) -> list[Plan]:
        check_folder_name(self.training_folder)
        return [plan_cacd(self.raw, self.landmarks, self.already_aligned, self.training_folder)]


@dataclass(frozen=True)
class AlignCacdVs(Align):
    """CACD-VS (0000_0.jpg to 3999_1.jpg) -> CACD_VS, with its list of 4,000 pairs."""

    def plans(self) -> list[Plan]:
        return [plan_cacd_vs(self.raw, self.landmarks, self.already_aligned)]
