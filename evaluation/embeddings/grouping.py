"""Who is on many photographs: embeddings -> people, by the cosines between them, and what is written of that.

Nobody says who the people are, so the only figure that goes with a grouping is the false-accept rate of its threshold.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import AgglomerativeClustering

from evaluation.age_gap import COMMON_RATES
from evaluation.arrays import blocks, unit_rows
from evaluation.calibration import Calibration
from evaluation.comparison import cosines, threshold_in_words, threshold_warnings
from evaluation.embeddings.gallery_files import CSV, write_rows
from evaluation.verification import COSINE_DECIMALS
from meta import UserError
from utils.files import check_is_new, new_folder

LINKAGES = ("connected", "average")
MAX_AVERAGE = 20_000  # pictures, of which average linkage holds all cosines: 3.2 GB


class Threshold(NamedTuple):
    """From which cosine on two pictures are taken for one person."""

    cosine: float
    far: str | None = None  # of a calibration
    sentences: tuple[str, ...] = ()  # on what the calibration's threshold rests


def rate_or_cosine(text: str) -> float | str:
    """The value of --group: a cosine, or one of the false-accept rates as test.py spells them. Raises UserError."""
    if text.lower() in COMMON_RATES:
        return text.lower()
    try:
        cosine = float(text)
    except ValueError:
        cosine = np.nan
    if not -1 < cosine < 1:
        raise UserError(f"--group {text} is neither a cosine between -1 and 1, such as 0.35, nor one of the "
                        f"false-accept rates {', '.join(COMMON_RATES)}: give one of these.")  # fmt: skip
    return cosine


def threshold_of(text: str, calibration: Calibration | None, benchmark: str | None = None) -> Threshold:
    """The threshold that --group asks for.

    Raises:
        UserError: it is none, or a false-accept rate that no calibration has.
    """
    wanted = rate_or_cosine(text)
    if isinstance(wanted, float):
        return Threshold(wanted)
    if calibration is None:
        raise UserError(f"--group {text} is a false-accept rate, and there is no calibration.json of these weights: "
                        "let test.py write one, or give a cosine such as 0.35.")  # fmt: skip
    chosen, point = calibration.at(float(wanted), benchmark)
    words = f"At FAR {wanted} the threshold is {threshold_in_words(chosen, point)}."
    return Threshold(point.threshold, wanted, (words, *threshold_warnings(chosen, point)))


def group_people(
    embeddings: np.ndarray, threshold: float, linkage: Literal["connected", "average"] = "connected"
) -> np.ndarray:
    """The person 0, 1, ... of each picture (N,) int64, those with most pictures first, then by their first picture.

    connected: two pictures are of one person where a chain of pairs at or above the threshold joins them. average:
    people are joined, those most alike first, for as long as the mean cosine between their pictures reaches it.

    Raises:
        UserError: more than 20,000 pictures for average linkage.
    """
    if linkage == "connected":
        labels = _connected(embeddings, threshold)
    elif len(embeddings) > MAX_AVERAGE:
        raise UserError(f"--linkage average holds the cosines of all pairs, for up to {MAX_AVERAGE:,} pictures, and "
                        f"there are {len(embeddings):,}: give --linkage connected.")  # fmt: skip
    elif len(embeddings) == 1:
        labels = np.zeros(1, np.int64)
    else:
        # Those at the threshold are joined too; scikit-learn joins what is nearer than its threshold.
        clustering = AgglomerativeClustering(None, metric="precomputed", linkage="average",
                                             distance_threshold=1 - threshold + 10.0**-COSINE_DECIMALS)  # fmt: skip
        labels = clustering.fit_predict(1 - cosines(embeddings, embeddings))
    _, first, labels, counts = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(first), np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(first))
    return rank[labels]


def _connected(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    units, edges = unit_rows(embeddings), []
    for rows in blocks(len(units), len(units)):
        a, b = np.nonzero(np.round(units[rows] @ units.T, COSINE_DECIMALS) >= threshold)
        is_later = b > a + rows.start  # each pair once
        edges.append(np.stack([a[is_later] + rows.start, b[is_later]]))
    a, b = np.concatenate(edges, axis=1)
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(units), len(units)))
    return connected_components(graph, directed=False)[1]


class Groups(NamedTuple):
    """What was found out about N pictures."""

    names: tuple[str, ...]
    people: np.ndarray  # (N,) int64, see `group_people`
    threshold: Threshold
    linkage: str

    @property
    def num_people(self) -> int:
        return int(self.people.max()) + 1

    @property
    def num_alone(self) -> int:
        """People of one picture."""
        return int((np.bincount(self.people) == 1).sum())

    def as_plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"num_pictures": len(self.names), "num_people": self.num_people, "num_people_of_one_picture":
                self.num_alone, "threshold": self.threshold.cosine, "far": self.threshold.far,
                "linkage": self.linkage}  # fmt: skip

    def sentences(self) -> list[str]:
        """The same as text."""
        num_pairs = len(self.names) * (len(self.names) - 1) // 2
        sentences = [f"{len(self.names):,} pictures of {self.num_people:,} people, {self.num_alone:,} of them on one "
                     f"picture only: {self.linkage} at cosine {self.threshold.cosine:.3f}."]  # fmt: skip
        sentences += self.threshold.sentences
        if self.threshold.far is not None:
            expected = num_pairs * float(self.threshold.far)
            chain = ", and each joins two people" if self.linkage == "connected" else ""
            sentences.append(f"If all {num_pairs:,} pairs were of different people about {expected:,.2g} would "
                             f"pass{chain}.")  # fmt: skip
        return sentences


# ------------------------------------------------------------------------------------------------------------ writing


def check_people_path(path: Path, force: bool) -> None:
    """Finds out before the work whether people can be written there. Raises UserError."""
    if path.suffix.lower() == CSV:
        check_is_new(path, force)
    elif path.suffix:
        raise UserError(f"--output {str(path)!r} is neither a {CSV} nor a folder: people are written as a table or as "
                        "folders of links, give one of these.")  # fmt: skip
    elif path.exists():
        raise UserError(f"--output {str(path)!r} exists: give a new folder for the people.")


def write_groups(path: Path, groups: Groups, source_of: Mapping[str, Path]) -> None:
    """A table `name,person,num_pictures`, or a new folder of a folder a person with links to the pictures."""
    if path.suffix:
        counts = np.bincount(groups.people)
        rows = ((name, person, counts[person]) for name, person in zip(groups.names, groups.people, strict=True))
        write_rows(path, [("name", "person", "num_pictures"), *rows])
        return
    with new_folder(path) as place:
        for i, (name, person) in enumerate(zip(groups.names, groups.people.tolist(), strict=True)):
            folder = place / f"person_{person:05d}"
            folder.mkdir(exist_ok=True)
            link = folder / name.strip("/").replace("/", "_")
            if os.path.lexists(link):  # a/b.jpg beside a_b.jpg
                link = folder / f"{i:06d}_{link.name}"
            link.symlink_to(os.path.abspath(source_of[name]))
