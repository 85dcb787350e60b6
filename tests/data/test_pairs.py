"""data/pairs.py: pair lists as published, and every way in which one can be wrong. Nothing is decoded."""

import os
import shutil

import numpy as np
import pytest
from refusals import refused

from data.benchmarks import find_spec, open_complete_eval_set, open_eval_set
from data.pairs import (
    PairList,
    find_pair_list,
    fold_counts,
    make_pairs,
    read_answers,
    read_pair_list,
    write_cacd_vs_list,
)
from data.verification_bins import write_verification_bin
from meta import BENCHMARKS, UserError


@pytest.fixture
def faces(tmp_path):
    folder = tmp_path / "faces"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg"):
        (folder / name).touch()
    return folder


def write_list(tmp_path, text):
    path = tmp_path / "pairs.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pairs_of(pair_list):
    """[(name_a, name_b, genuine), ...] as the list says it."""
    name = pair_list.images.name
    return [
        (name(a), name(b), bool(genuine))
        for a, b, genuine in zip(pair_list.first, pair_list.second, pair_list.genuine, strict=True)
    ]


def test_list_is_read_in_order_and_each_image_stands_once(tmp_path, faces):
    path = write_list(tmp_path, "b.jpg a.jpg 1\n\na.jpg\tc.jpg\t0\n   \n ./a.jpg  sub/d.jpg 0\nb.jpg a.jpg 1")
    pair_list = read_pair_list(path, faces)
    assert pairs_of(pair_list) == [
        ("b.jpg", "a.jpg", True),
        ("a.jpg", "c.jpg", False),
        ("a.jpg", "sub/d.jpg", False),
        ("b.jpg", "a.jpg", True),
    ]
    assert [pair_list.images.name(i) for i in range(len(pair_list.images))] == ["b.jpg", "a.jpg", "c.jpg", "sub/d.jpg"]
    assert pair_list.images.path(3) == str(faces / "sub" / "d.jpg")
    assert (len(pair_list), pair_list.missing, pair_list.num_pairs_dropped) == (4, (), 0)
    assert (pair_list.first.dtype, pair_list.second.dtype, pair_list.genuine.dtype) == (np.int64, np.int64, bool)


@pytest.mark.parametrize("line", ["a.jpg b.jpg", "a.jpg b.jpg 1 1", "a.jpg,b.jpg,1", "a.jpg b.jpg 2", "a.jpg b.jpg -1",
                                  "a.jpg b.jpg 1.0", "1 a.jpg b.jpg", "my face.jpg b.jpg 1", "one"])  # fmt: skip
def test_a_malformed_line_is_refused_with_its_place_and_text(tmp_path, faces, line):
    path = write_list(tmp_path, f"a.jpg b.jpg 1\n\n{line}\na.jpg c.jpg 0\n")
    with pytest.raises(UserError, match="is expected") as caught:
        read_pair_list(path, faces)
    assert all(part in str(caught.value) for part in (str(path), "line 3", repr(line)))


def test_missing_images_are_counted_and_named(tmp_path, faces):
    path = write_list(tmp_path, "a.jpg x1.jpg 1\nx2.jpg x3.jpg 0\nx4.jpg x1.jpg 0\na.jpg b.jpg 1\nsub a.jpg 0\n")
    with pytest.raises(UserError) as caught:
        read_pair_list(path, faces)
    message = str(caught.value)
    assert "lacks 5 of the 7 images" in message  # a folder is no image
    assert "('x1.jpg', 'x2.jpg', 'x3.jpg', ...)" in message
    assert "--allow-missing to leave out the 4 pairs" in message
    assert str(faces) in message


def test_allow_missing_drops_and_counts_pairs_and_keeps_the_order(tmp_path, faces):
    path = write_list(tmp_path, "c.jpg b.jpg 0\na.jpg x.jpg 1\nx.jpg y.jpg 1\nb.jpg a.jpg 1\n")
    pair_list = read_pair_list(path, faces, allow_missing=True)
    assert pairs_of(pair_list) == [("c.jpg", "b.jpg", False), ("b.jpg", "a.jpg", True)]
    assert pair_list.missing == ("x.jpg", "y.jpg")
    assert pair_list.num_pairs_dropped == 2
    assert len(pair_list.images) == 3


def test_a_list_without_a_pair_left_and_a_missing_folder_are_named(tmp_path, faces):
    with pytest.raises(UserError, match="none of the 1 pairs"):
        read_pair_list(write_list(tmp_path, "x.jpg a.jpg 1\n"), faces, allow_missing=True)
    with pytest.raises(UserError, match="nofaces.*does not exist"):
        read_pair_list(write_list(tmp_path, "a.jpg b.jpg 1\n"), tmp_path / "nofaces", allow_missing=True)
    with pytest.raises(UserError, match="nofaces.*does not exist"):
        make_pairs(BENCHMARKS["cacd_vs"], tmp_path / "nofaces", allow_missing=True)


@pytest.mark.parametrize("name", ["cacd_vs", "calfw"])
def test_lists_are_found_at_both_published_places_the_described_one_first(tmp_path, name):
    benchmark = BENCHMARKS[name]
    assert find_pair_list(tmp_path, benchmark) is None
    described, higher = (tmp_path / place for place in benchmark.pair_lists)
    assert described.parent.parent == higher.parent
    described.parent.mkdir(parents=True)
    higher.touch()
    assert find_pair_list(tmp_path, benchmark) == higher
    described.touch()
    assert find_pair_list(tmp_path, benchmark) == described


def test_cacd_vs_missing_images_are_refused_or_dropped_like_a_lists(tmp_path):
    for name in ("0000_0.jpg", "0000_0.png", "0000_1.JPEG", "0200_0.jpg", "0200_1.jpg", "0201_0.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="lacks 7995 of the 8000 images.*'0001_0.jpg'.*--allow-missing"):
        make_pairs(BENCHMARKS["cacd_vs"], tmp_path)
    pair_list = make_pairs(BENCHMARKS["cacd_vs"], tmp_path, allow_missing=True)
    # Of two files with one stem the .jpg is taken.
    assert pairs_of(pair_list) == [("0000_0.jpg", "0000_1.JPEG", True), ("0200_0.jpg", "0200_1.jpg", False)]
    assert pair_list.num_pairs_dropped == 3998


def test_the_written_list_reads_as_the_rule(tmp_path):
    """Ten folds of 200 genuine pairs, then 200 impostor pairs; tests/test_prepare.py looks at every line."""
    for name in ("0000_0.jpg", "0000_1.jpg", "0199_0.JPG", "0199_1.png", "0200_0.jpg", "0200_1.jpg"):
        (tmp_path / name).touch()
    path = tmp_path / "list" / "pairs.txt"
    write_cacd_vs_list(path)
    assert os.listdir(path.parent) == [path.name]  # nothing left beside it
    made = make_pairs(BENCHMARKS["cacd_vs"], tmp_path, allow_missing=True)
    expected = [
        ("0000_0.jpg", "0000_1.jpg", True),
        ("0199_0.JPG", "0199_1.png", True),
        ("0200_0.jpg", "0200_1.jpg", False),
    ]
    assert pairs_of(made) == expected
    assert pairs_of(read_pair_list(path, tmp_path, allow_missing=True)) == [expected[0], expected[2]]


def test_a_list_that_cannot_be_put_in_place_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "list.txt"
    path.write_text("mine")

    def full_disk(*_):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_cacd_vs_list(path)
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["list.txt"]


def test_a_fold_of_one_kind_is_refused_wherever_a_list_is_opened(tiny_faces, tmp_path):
    """14: test.py and train.py name list and fold as prepare.py check does, before anything is embedded."""
    shutil.copytree(tiny_faces / "CALFW", tmp_path / "CALFW")
    path, own = find_pair_list(tmp_path, BENCHMARKS["calfw"]), tmp_path / "own.bin"
    assert fold_counts(read_answers(path)) == [(1, 1)] * 10
    open_complete_eval_set("calfw", tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:6], lines[6].replace(" 1\n", " 0\n"), *lines[7:]]))  # one wrong answer
    refused(open_complete_eval_set, "calfw", tmp_path, match=r"in 1 of the ten folds \(fold 4: 0 genuine, 2 impostor\)")
    path.write_text("".join(sorted(lines, key=lambda line: line.split()[2], reverse=True)))
    pairs = read_pair_list(path, tmp_path / BENCHMARKS["calfw"].folders[0])
    write_verification_bin(pairs, own, reencode=True)
    for name, file in (("calfw", path), (str(own), own)):
        words = r"in 10 of the ten folds \(fold 1: 2 genuine, 0 impostor; fold 2"
        with pytest.raises(UserError, match=words) as of_training:
            open_complete_eval_set(name, tmp_path)
        with pytest.raises(UserError, match=words) as of_test:
            open_eval_set(find_spec(name, tmp_path), str)
        assert str(of_training.value) == str(of_test.value)
        assert str(file) in str(of_test.value) and "\n" not in str(of_test.value)


def test_pairs_left_out_for_missing_pictures_do_not_make_a_list_wrong(tiny_faces, tmp_path):
    """14: the folds are those of the whole list, as in prepare.py check."""
    shutil.copytree(tiny_faces / "CALFW", tmp_path / "CALFW")
    next((tmp_path / BENCHMARKS["calfw"].folders[0]).iterdir()).unlink()
    opened = open_eval_set(find_spec("calfw", tmp_path), str, allow_missing=True)
    assert isinstance(opened.pairs, PairList) and opened.pairs.num_pairs_dropped >= 1
