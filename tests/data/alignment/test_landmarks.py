"""data/alignment/landmarks.py: five points out of every form that landmarks come in, and every way one can be wrong."""

import json

import numpy as np
import pytest

from data.alignment.landmarks import COLUMNS, read_five_lines, read_point_table, read_pts
from meta import UserError

POINTS = np.array([[30.5, 40], [60, 41.25], [45, 55], [33, 70], [58, 71]])
ROW = "30.5,40,60,41.25,45,55,33,70,58,71"


def write(folder, text, name="file.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pts_text(points, num=68):
    return f"version: 1\nn_points: {num}\n{{\n" + "".join(f"{x:g} {y:g}\n" for x, y in points) + "}\n"


def refused(read, *words):
    with pytest.raises(UserError) as caught:
        read()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 900
    for word in words:
        assert word in str(caught.value)


def test_68_points_are_pupils_nose_tip_and_mouth_corners_in_fgnets_order_and_ibugs(tmp_path):
    points = np.random.default_rng(0).uniform(0, 400, (68, 2)).round(3)
    path = write(tmp_path, pts_text(points), "001a02.pts")
    assert np.allclose(read_pts(path, "fgnet"), points[[31, 36, 67, 48, 54]], atol=1e-9)
    assert read_pts(path, "fgnet").dtype == np.float64
    # Those of iBUG have eye corners, whose centres are taken, and count from one.
    expected = [points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]]
    assert np.allclose(read_pts(path, "ibug"), np.array(expected) - 1, atol=1e-9)


@pytest.mark.parametrize("text", [
    pts_text(np.ones((68, 2))).replace("version: 1\nn_points: 68", "version:1\r\n\r\nn_points:  68"),
    pts_text(np.ones((68, 2))).replace("version: 1\n", ""),
    "\ufeff" + pts_text(np.ones((68, 2))) + "\n\n",
    pts_text(np.ones((68, 2))).replace("1 1", "  1.0e0\t1 "),
])  # fmt: skip
def test_68_points_may_be_spaced_in_any_way(tmp_path, text):
    assert np.array_equal(read_pts(write(tmp_path, text, "a.pts"), "fgnet"), np.ones((5, 2)))


GOOD = pts_text(np.ones((68, 2)))


@pytest.mark.parametrize("text, words", [
    (pts_text(np.ones((67, 2))), "ends after 67 points"), (pts_text(np.ones((69, 2))), "line 72, reads '1 1'"),
    (GOOD.replace("}", ""), "ends after 68 points"), (GOOD + "1 1\n", "line 73, reads '1 1'"),
    (GOOD.replace("68", "5"), "line 2, reads 'n_points: 5'"),
    (GOOD.replace("1 1\n", "1 1 1\n", 1), "line 4, reads '1 1 1'"),
    (GOOD.replace("1 1\n", "1\n", 1), "line 4, reads '1'"),
    (GOOD.replace("1 1\n", "1 nan\n", 1), "line 4, reads '1 nan'"),
    (GOOD.replace("1 1\n", "1 1e9\n", 1), "line 4"), (GOOD.replace("1 1\n", "1_0 1\n", 1), "line 4"),
    (GOOD.replace("1 1\n", "\u0661 1\n", 1), "line 4"),
    (GOOD.replace("1 1\n", "a \x1b[31m\n", 1), r"line 4, reads 'a \x1b[31m'"),
    ("", "ends after 0 points"), ("68\n", "line 1, reads '68'"), (b"\xff\xd8\xff\xe0" * 30, "is a JPEG picture"),
])  # fmt: skip
def test_a_file_that_is_no_68_points_is_refused_with_its_line(tmp_path, text, words):
    path = write(tmp_path, text, "001a02.pts")
    refused(lambda: read_pts(path, "fgnet"), repr(str(path)), words)


@pytest.mark.parametrize("read, words_of_folder", [
    (lambda path: read_pts(path, "fgnet"), "cannot be read"),
    (read_five_lines, "cannot be read"),
    (read_point_table, "is a folder: give the landmark file itself"),
])  # fmt: skip
def test_missing_files_and_folders_are_refused(tmp_path, read, words_of_folder):
    (tmp_path / "folder.json").mkdir()
    for name, words in (("gone.csv", "cannot be read"), ("folder.json", words_of_folder)):
        refused(lambda name=name: read(tmp_path / name), name, words)


def test_calfws_five_lines_are_the_five_points(tmp_path):
    text = "106.3 107.98\n151.5\t108 \n 128 130\r\n\n110 150\n149.25 151\n"
    found = read_five_lines(write(tmp_path, text, "a_5loc_attri.txt"))
    assert np.array_equal(found, [[106.3, 107.98], [151.5, 108], [128, 130], [110, 150], [149.25, 151]])


@pytest.mark.parametrize("text, words", [
    ("1 2\n3 4\n5 6\n7 8\n", "has 4 lines"),
    ("1 2\n3 4\n5 6\n7 8\n9 10\n11 12\n", "line 6, reads '11 12'"),
    ("1 2\n3 4 5\n5 6\n7 8\n9 10\n", "line 2, reads '3 4 5'"),
    ("1,2\n", "line 1, reads '1,2'"),
    ("", "has 0 lines"),
])  # fmt: skip
def test_what_is_no_five_lines_is_refused_with_its_line(tmp_path, text, words):
    path = write(tmp_path, text, "a_5loc_attri.txt")
    refused(lambda: read_five_lines(path), repr(str(path)), words)


def test_csv_columns_may_stand_in_any_order_and_case_among_others(tmp_path):
    table = read_point_table(write(tmp_path, f"{','.join(COLUMNS)}\na/b.jpg,{ROW}\n"))
    assert len(table) == 1 and np.array_equal(table.find("a/b.jpg"), POINTS)
    columns, cells = list(COLUMNS), ["my face, 2.jpg", *ROW.split(",")]
    order = np.random.default_rng(0).permutation(11)
    header = ",".join(["Score", *(columns[i].upper() for i in order)])
    row = ",".join(["0.9", *(f'"{cells[i]}"' for i in order)])
    table = read_point_table(write(tmp_path, f"{header}\r\n\r\n{row}\r\n"))
    assert np.array_equal(table.find("my face, 2.jpg"), POINTS)


def test_json_and_trainlst_hold_the_same_points(tmp_path):
    content = {"a/b.jpg": POINTS.tolist(), "c.jpg": (POINTS + 1).astype(int).tolist()}
    table = read_point_table(write(tmp_path, json.dumps(content), "points.json"))
    assert np.array_equal(table.find("a/b.jpg"), POINTS) and np.array_equal(table.find("c.jpg"), (POINTS + 1) // 1)
    numbers = "\t".join(f"{number:g}" for number in POINTS.T.ravel())  # 5 x, then 5 y
    text = f"0\t/raid/a/7/b.jpg\t7\t1\t2\t90\t95\t{numbers}\n1\t/raid/a/7/c.jpg\t7\n0\t/raid/x/d.jpg\t8\t{numbers}\n"
    table = read_point_table(write(tmp_path, text, "train.lst"))
    assert len(table) == 2
    assert np.array_equal(table.find("7/b.jpg"), POINTS) and np.array_equal(table.find("d.jpg"), POINTS)
    assert table.find("7/c.jpg") is None  # without landmarks there


def test_a_picture_is_found_by_whole_folder_names_and_never_guessed(tmp_path):
    rows = "".join(f"{path},{ROW}\n" for path in ("/data/x/1/a.jpg", "./y/2/a.jpg", "b.jpg", r"z\3\c.jpg", "21/e.jpg"))
    table = read_point_table(write(tmp_path, f"{','.join(COLUMNS)}\n{rows}"))
    for path in ("1/a.jpg", "x/1/a.jpg", "y/2/a.jpg", "2/a.jpg", "any/b.jpg", "z/3/c.jpg", "./b.jpg"):
        assert table.find(path) is not None, path
    for path in ("11/a.jpg", "a.JPG", "other/1/a.jpg", "xb.jpg", "d.jpg", "1/e.jpg", "121/e.jpg"):
        assert table.find(path) is None, path
    refused(lambda: table.find("a.jpg"), "'/data/x/1/a.jpg' and for 'y/2/a.jpg', and 'a.jpg' could be either")


def test_names_that_are_not_utf8_are_found(tmp_path):
    for name, text in (("a.csv", f"{','.join(COLUMNS)}\nJos\xe9.jpg,{ROW}\n"),
                       ("a.json", json.dumps({"Jos\xe9.jpg": POINTS.tolist()}, ensure_ascii=False))):  # fmt: skip
        table = read_point_table(write(tmp_path, text.encode("latin-1"), name))
        assert table.find(b"Jos\xe9.jpg".decode("utf-8", "surrogateescape")) is not None


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize("name, text, words", [
    ("a.csv", "a.jpg," + ROW, "line 1, has the column 'path' 0 times"),
    ("a.csv", HEADER.replace("x3", "x2"), "the column 'x2' 2 times"),
    ("a.csv", HEADER, "holds points of no picture"), ("a.csv", "", "is empty: get it again"),
    ("a.csv", f"{HEADER}\na.jpg,{ROW}\nb.jpg,1,2,3\n", "line 3, reads 'b.jpg,1,2,3'"),
    ("a.csv", f"{HEADER}\na.jpg,{ROW.replace('71', 'x')}\n", "line 2"),
    ("a.csv", f"{HEADER}\na.jpg,{ROW.replace('71', '')}\n", "line 2"),
    ("a.csv", f"{HEADER}\n,{ROW}\n", "line 2, names no picture"),
    ("a.csv", f"{HEADER}\na.jpg,{ROW}\n./a.jpg,{ROW}\n", "line 3, has points for 'a.jpg' again"),
    ("a.csv", f'{HEADER}\n"a.jpg,{ROW}\n', "line 2, reads"),
    ("a.csv", f"{HEADER}\n{'a' * 20000},{ROW}\n", "line 2, has more than 10,000 characters"),
    ("a.json", "[]", "JSON of another kind"), ("a.json", '{"a": 1', "line 1, is no JSON"),
    ("a.json", '{\n"a": [[1,2],[3,4],[5,6],[7,8]]}', "picture 'a': {"),
    ("a.json", '{"a": [[1,2],[3,4],[5,6],[7,8],[9]]}', "no ten numbers"),
    ("a.json", '{"a": [[1,2],[3,4],[5,6],[7,8],[9,NaN]]}', "no ten numbers"),
    ("a.json", '{"a": [[1,2],[3,4],[5,6],[7,8],[9,true]]}', "no ten numbers"),
    ("a.json", '{"a": [[1,2],[3,4],[5,6],[7,8],[9,"1"]]}', "no ten numbers"),
    ("a.json", '{"a": [[1,2],[3,4],[5,6],[7,8],[9,' + "9" * 400 + "]]}", "no ten numbers"),
    ("a.json", '{"a": [[1,2],[3,4],[5,6],[7,8],[9,' + "9" * 9000 + "]]}", "a.json"),
    ("a.json", "[" * 100_000, "cannot be read"),
    ("a.json", '{"a": %s, "a": %s}' % (2 * (json.dumps(POINTS.tolist()),)), "points for 'a' again"),
    ("a.json", b"\x80\x04", "is no JSON"), ("a.lst", "0 a.jpg 1\n", "line 1, reads '0 a.jpg 1'"),
    ("a.lst", "1\ta.jpg\t1\n", "holds points of no picture"),
    ("a.lst", "0\ta.jpg\t1" + "\t5" * 9 + "\tx\n", "line 1"),
    ("a.npy", "a.jpg", "no extension of .csv, .json, .lst, .txt"),
])  # fmt: skip
def test_a_table_that_is_wrong_is_refused_with_its_place(tmp_path, name, text, words):
    path = write(tmp_path, text, name)
    refused(lambda: read_point_table(path), repr(str(path)), words)
