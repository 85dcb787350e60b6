"""evaluation/embeddings/grouping.py: people found by cosines, against plain loops, and what is written of them."""

import csv

import numpy as np
import pytest
from refusals import refused

from evaluation.calibration import BenchmarkCalibration, Calibration, OperatingPoint
from evaluation.comparison import Face, cosines, search_gallery
from evaluation.embeddings import gallery_files, grouping
from evaluation.embeddings.gallery_files import write_gallery
from evaluation.embeddings.grouping import (
    Groups,
    Threshold,
    check_people_path,
    group_people,
    threshold_of,
    write_groups,
)


@pytest.fixture
def embeddings():
    """(40, 6): a few people with noise, and pictures between them."""
    draw = np.random.default_rng(1)
    people = draw.normal(size=(7, 6))[draw.integers(0, 7, 40)]
    return (people + 0.5 * draw.normal(size=(40, 6))).astype(np.float32)


def in_order(labels) -> list[int]:
    """Numbered as `group_people` does it: the largest first, then by the first picture."""
    labels = list(labels)
    known = sorted(set(labels), key=lambda one: (-labels.count(one), labels.index(one)))
    return [known.index(one) for one in labels]


@pytest.mark.parametrize("threshold", [-0.9, 0.3, 0.6, 0.8, 0.95, 0.999])
def test_connected_people_are_those_that_a_flood_finds_in_blocks_too(embeddings, threshold, monkeypatch):
    scores, labels = cosines(embeddings, embeddings), [-1] * 40
    for start in range(40):
        waiting = [start] if labels[start] < 0 else []
        while waiting:
            i = waiting.pop()
            labels[i] = start
            waiting += [k for k in range(40) if labels[k] < 0 and scores[i, k] >= threshold]
    for scores_a_block in (2**22, 100):
        monkeypatch.setattr("evaluation.arrays.SCORES_PER_BLOCK", scores_a_block)
        assert group_people(embeddings, threshold).tolist() == in_order(labels)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.95])
def test_average_linkage_joins_the_two_most_alike_while_their_mean_reaches_the_threshold(embeddings, threshold):
    scores = cosines(embeddings, embeddings)
    people = [[i] for i in range(40)]
    while len(people) > 1:
        means = {(a, b): scores[np.ix_(people[a], people[b])].mean() for a in range(len(people)) for b in range(a)}
        a, b = max(means, key=means.get)
        if means[a, b] < threshold:
            break
        people[b] += people.pop(a)
    labels = [next(k for k, members in enumerate(people) if i in members) for i in range(40)]
    assert group_people(embeddings, threshold, "average").tolist() == in_order(labels)


def test_a_pair_at_the_threshold_is_joined_and_one_picture_is_one_person():
    pair = np.array([[1.0, 0.0], [0.6, 0.8]])
    for linkage in ("connected", "average"):
        assert group_people(pair, 0.6, linkage).tolist() == [0, 0]
        assert group_people(pair, np.nextafter(0.6, 1) + 1e-9, linkage).tolist() == [0, 1]
        assert group_people(pair[:1], 0.6, linkage).tolist() == [0]


def test_average_linkage_of_too_many_pictures_is_refused(embeddings, monkeypatch):
    monkeypatch.setattr(grouping, "MAX_AVERAGE", 39)
    refused(group_people, embeddings, 0.5, "average", match="up to 39 pictures, and there are 40: give --linkage conn")


def calibration(is_drawn: bool) -> Calibration:
    point = OperatingPoint("1e-2", 0.4, 20, 90.0, {})
    return Calibration("c.json", {"lfw": BenchmarkCalibration("lfw", "LFW", 100, 2000, {"1e-2": point}, {}, is_drawn)})


def test_a_threshold_is_a_cosine_or_that_of_a_rate_and_says_where_it_comes_from():
    assert threshold_of("0.35", None) == Threshold(0.35) and threshold_of("0.01", calibration(False)).cosine == 0.01
    threshold = threshold_of("1e-2", calibration(False))
    assert threshold.cosine == 0.4 and threshold.far == "1e-2" and len(threshold.sentences) == 1
    assert "measured on the drawn faces of LFW" in threshold_of("1e-2", calibration(True)).sentences[1]
    refused(threshold_of, "1e-2", None, match="there is no calibration.json of these weights")
    refused(threshold_of, "1e-3", calibration(False), match="is not calibrated by lfw")
    for text in ("2", "1", "nan", "much", "1e-5x"):
        refused(threshold_of, text, None, match=f"--group {text} is neither a cosine")
    said = Groups(tuple("abcd"), np.array([0, 0, 1, 2]), threshold, "connected").sentences()
    assert said[0] == "4 pictures of 3 people, 2 of them on one picture only: connected at cosine 0.400."
    assert said[-1] == "If all 6 pairs were of different people about 0.06 would pass, and each joins two people."


def test_people_are_written_as_a_table_or_as_folders_of_links(tmp_path):
    names, sources = ("x/a.jpg", "x_a.jpg", "b.jpg"), {}
    for i, name in enumerate(names):
        sources[name] = tmp_path / f"{i}.jpg"
        sources[name].write_text(name)
    groups = Groups(names, np.array([0, 0, 1]), Threshold(0.4), "average")
    write_groups(tmp_path / "people.csv", groups, sources)
    rows = list(csv.reader(open(tmp_path / "people.csv")))
    assert rows == [
        ["name", "person", "num_pictures"],
        ["x/a.jpg", "0", "2"],
        ["x_a.jpg", "0", "2"],
        ["b.jpg", "1", "1"],
    ]
    write_groups(tmp_path / "people", groups, sources)
    found = {path.relative_to(tmp_path / "people").as_posix(): path.read_text()
             for path in (tmp_path / "people").rglob("*.jpg")}  # fmt: skip
    assert found == {"person_00000/x_a.jpg": "x/a.jpg", "person_00000/000001_x_a.jpg": "x_a.jpg",
                     "person_00001/b.jpg": "b.jpg"}  # fmt: skip
    refused(check_people_path, tmp_path / "people", True, match="exists: give a new folder")
    refused(check_people_path, tmp_path / "people.csv", False, match="exists: give another name, or --force")
    refused(check_people_path, tmp_path / "people.npz", False, match="neither a .csv nor a folder")


def test_cosines_are_written_with_their_names(embeddings, tmp_path, monkeypatch):
    names = tuple(f"{i},jpg" for i in range(40))
    write_gallery(tmp_path / "cosines.csv", names, embeddings, None, {})
    header, *rows = csv.reader(open(tmp_path / "cosines.csv"))
    assert header == ["name", *names] and [row[0] for row in rows] == list(names)
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), cosines(embeddings, embeddings), atol=6e-7)
    monkeypatch.setattr(gallery_files, "MAX_MATRIX", 39)
    refused(write_gallery, tmp_path / "more.csv", names, embeddings, None, {}, match="up to 39, give a name in .npz")
    assert not (tmp_path / "more.csv").exists()


def test_a_gallery_searched_with_itself_leaves_each_picture_out_of_its_own_search(embeddings):
    """A copy under another name stays, and so does another picture under the same name."""
    names = [f"{i}.jpg" for i in range(40)]
    embeddings[7] = embeddings[3]
    probes = [Face(name, row) for name, row in zip(names, embeddings, strict=True)]
    found = search_gallery(probes, names, embeddings, count=3)
    assert found.num_in_gallery == 40 and found.as_plain()["num_in_gallery"] == 40
    assert any("left out of its own search" in sentence for sentence in found.sentences())
    for search in found.searches:
        assert search.name not in [match.name for match in search.matches] and len(search.matches) == 3
    assert found.searches[3].matches[0].name == "7.jpg" and found.searches[3].matches[0].cosine == 1
    (other,) = search_gallery([Face("5.jpg", embeddings[4])], names, embeddings, count=40).searches
    assert len(other.matches) == 40 and other.matches[0].name == "4.jpg"
