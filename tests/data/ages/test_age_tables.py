"""data/ages/tables.py: side tables of ages, ours and other tools', and every way in which one can be wrong."""

import os
import tracemalloc
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from refusals import refused

from data.ages import tables as age_tables
from data.ages.tables import read_age_table, read_ages, whole_years, write_age_table
from meta import UserError


@dataclass
class Keys:
    """The part of an index that a table asks for."""

    keys: list[str]
    root: str = "/data/faces"

    def __len__(self):
        return len(self.keys)

    def key(self, i):
        return self.keys[i]


KEYS = Keys(["0_0/1.jpg", "0_0/2.jpg", "0_1/3.png", "0_1/4.jpg"])


@pytest.fixture
def table(tmp_path):
    def write(content: str | bytes):
        path = tmp_path / "ages.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_a_written_table_is_plain_text_reads_back_and_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "sub" / "ages.csv"
    write_age_table(path, KEYS.keys, np.array([3, 120, 0, 41], np.int16))
    assert path.read_text() == "key,age\n0_0/1.jpg,3\n0_0/2.jpg,120\n0_1/3.png,0\n0_1/4.jpg,41\n"
    ages = read_ages(path, KEYS)
    assert ages.tolist() == [3, 120, 0, 41] and ages.dtype == np.int16
    assert os.listdir(path.parent) == ["ages.csv"]
    keys = [os.fsdecode(b"Jos\xe9.jpg"), "b,c.jpg", 'd"e.jpg', " f.jpg"]
    refused(write_age_table, path, keys, np.array([1, 2, 3, 4]), match="exists.*--force")
    assert read_ages(path, KEYS).tolist() == [3, 120, 0, 41]
    write_age_table(path, keys, np.array([1, 2, 3, 4]), force=True)
    assert b"Jos\xe9.jpg,1\n" in path.read_bytes() and read_ages(path, Keys(keys)).tolist() == [1, 2, 3, 4]


def test_predicted_ages_are_kept_so_exactly_that_rounding_them_later_is_the_same(tmp_path):
    half = np.float32(34.5)
    predicted = np.array([half, np.nextafter(half, np.float32(0)), 0.1, 99.999], np.float32)
    write_age_table(tmp_path / "ages.csv", KEYS.keys, predicted)
    assert read_ages(tmp_path / "ages.csv", KEYS).tolist() == [35, 34, 0, 100] == whole_years(predicted).tolist()


@example(0.49999999999999994)
@example(2.5)
@given(st.floats(0, 120))
def test_years_are_rounded_half_up(age):
    expected = int(Decimal(age).to_integral_value(ROUND_HALF_UP))
    assert whole_years(np.array([age])).tolist() == [expected]


def test_a_table_that_cannot_be_written_whole_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"'b\\nc.jpg' has a line break"):
        write_age_table(tmp_path / "ages.csv", ["a.jpg", "b\nc.jpg"], np.array([1, 2]))
    with pytest.raises(AssertionError):
        write_age_table(tmp_path / "ages.csv", ["a.jpg"], np.array([np.nan]))
    with pytest.raises(ValueError):
        write_age_table(tmp_path / "ages.csv", ["a.jpg"], np.array([1, 2]))
    assert os.listdir(tmp_path) == []


KEY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), min_size=1)


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(KEY_TEXT, min_size=1, max_size=6, unique=True), data=st.data())
def test_any_name_without_a_line_break_survives_the_way_there_and_back(tmp_path_factory, keys, data):
    ages = np.array([data.draw(st.integers(0, 120)) for _ in keys], np.int16)
    path = tmp_path_factory.mktemp("any") / "ages.csv"
    write_age_table(path, keys, ages)
    assert read_ages(path, Keys(keys)).tolist() == ages.tolist()


LAYOUTS = {
    "no header": "0_0/1.jpg,3\n0_0/2.jpg,4\n0_1/3.png,5\n0_1/4.jpg,6\n",
    "tabs": "0_0/1.jpg\t3\n0_0/2.jpg\t4\n0_1/3.png\t5\n0_1/4.jpg\t6",
    "semicolons": "file;age\n0_0/1.jpg;3\n0_0/2.jpg;4\n0_1/3.png;5\n0_1/4.jpg;6\n",
    "blanks": "0_0/1.jpg 3\n0_0/2.jpg   4\n 0_1/3.png 5\n0_1/4.jpg 6\n",
    "Windows": "\ufeffFile,Age\r\n0_0/1.jpg,3\r\n0_0/2.jpg,4\r\n\r\n0_1/3.png,5\r\n0_1/4.jpg,6\r\n",
    "more columns": "id,Name,age,file\n0,A,3,0_0/1.jpg\n0,A,4,0_0/2.jpg\n1,B,5,0_1/3.png\n1,B,6,0_1/4.jpg\n",
    "a list of MTLFace with a header": "identity filename age gender\n0 0_0/1.jpg 3 0\n0 0_0/2.jpg 4 0\n"
    "1 0_1/3.png 5 1\n1 0_1/4.jpg 6 1\n",
    "pandas": ",path,predicted_age\n0,0_0/1.jpg,3.0\n1,0_0/2.jpg,4.2\n2,0_1/3.png,4.5\n3,0_1/4.jpg,6.49\n",
    "numpy": "0_0/1.jpg,3.000000000000000000e+00\n0_0/2.jpg,4e0\n0_1/3.png,5.\n0_1/4.jpg, 6\n",
    "quotes": '"path","age"\n"0_0/1.jpg","3"\n"0_0/2.jpg","4"\n0_1/3.png,5\n"0_1/4.jpg",6\n',
    "any order": "0_1/4.jpg,6\n0_0/2.jpg,4\n0_0/1.jpg,3\n0_1/3.png,5\n",
    "twice the same": "0_0/1.jpg,3\n0_0/2.jpg,4\n0_0/1.jpg,3.2\n0_1/3.png,5\n0_1/4.jpg,6\n0_0/2.jpg,4\n",
    "./ before": "./0_0/1.jpg,3\n./0_0//2.jpg,4\n0_1/./3.png,5\n0_0/../0_1/4.jpg,6\n",
    "absolute": "/data/faces/0_0/1.jpg,3\n/data/faces/0_0/2.jpg,4\n/data/faces/0_1/3.png,5\n/data//faces/0_1/4.jpg,6\n",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows_at_once", [1, 3, 50_000])
def test_tables_of_other_tools_read_the_same(table, monkeypatch, layout, rows_at_once):
    monkeypatch.setattr(age_tables, "ROWS_AT_ONCE", rows_at_once)
    assert read_ages(table(LAYOUTS[layout]), KEYS).tolist() == [3, 4, 5, 6]


def test_paths_relative_to_the_working_folder_are_understood(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = Keys(["0/1.jpg", "0/2.jpg"], str(tmp_path / "faces"))
    assert read_ages(table("faces/0/1.jpg,3\n./faces/0/2.jpg,4\n"), index).tolist() == [3, 4]
    # What is relative to the root comes first: here it is another picture.
    index = Keys(["0/1.jpg", "faces/0/1.jpg"], str(tmp_path / "faces"))
    assert read_ages(table("faces/0/1.jpg,3\n0/1.jpg,4\n"), index).tolist() == [4, 3]


def test_keys_with_equal_hashes_are_distinguished(table, monkeypatch):
    monkeypatch.setattr(age_tables, "hash", len, raising=False)
    assert read_ages(table("0_1/4.jpg,6\n0_0/2.jpg,4\n0_0/1.jpg,3\n0_1/3.png,5\n"), KEYS).tolist() == [3, 4, 5, 6]
    refused(read_ages, table("0_1/4.jpg,6\n0_0/2.jpg,4\n0_0/9.jpg,3\n0_1/3.png,5\n"), KEYS, match="1 lines about")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows_at_once=st.integers(1, 9))
def test_any_order_with_gaps_and_strangers_agrees_with_a_plain_dict(tmp_path_factory, data, rows_at_once):
    keys = [f"{i // 5}/{i}.jpg" for i in range(20)]
    order = data.draw(st.permutations(range(24)))  # 20..23 are no pictures of the index
    if data.draw(st.booleans()):
        order = sorted(order)
    ages = {i: data.draw(st.integers(0, 120)) for i in order}
    path = tmp_path_factory.mktemp("order") / "ages.csv"
    path.write_text("".join(f"{i // 5}/{i}.jpg,{ages[i]}\n" for i in order))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(age_tables, "ROWS_AT_ONCE", rows_at_once)
        read = read_age_table(path, Keys(keys), allow_unknown=True)
    assert (read.ages.tolist(), read.num_unknown) == ([ages[i] for i in range(20)], 4)


@pytest.mark.parametrize(("line", "says"), [
    ("0_1/3.png", "1 fields where the first line has 2"), ("0_1/3.png,5,6", "3 fields"),
    ("0,1/3.png,5", "3 fields.*double quotes"), ('"0_1/3.png,5', "double quotes do not pair up"),
    ("0_1/3.png,", "'' where an age in years should stand"), ("0_1/3.png,five", "'five' where"),
    ("0_1/3.png,3_9", "'3_9' where"), ("0_1/3.png,0x10", "'0x10' where"), ("0_1/3.png,٣", "where an age"),
    ("0_1/3.png," + "1" * 400, "where an age"), ("0_1/3.png,-1", "the age '-1', outside 0 to 120 years"),
    *((f"0_1/3.png,{age}", "outside 0 to 120") for age in ("-0.2", "120.2", "nan", "inf", "1e400")),
])  # fmt: skip
def test_a_malformed_line_is_refused_with_its_number(table, line, says):
    path = table(f"key,age\n0_0/1.jpg,3\n\n{line}\n0_1/4.jpg,4\n")
    with pytest.raises(UserError, match=rf"ages.csv', line 4, .*{says}") as caught:
        read_ages(path, KEYS)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(("content", "says"), [
    ("", "is empty: 'key,age' per line is expected"), ("\n \n", "is empty"),
    ("0_0/1.jpg\n0_0/2.jpg\n", "line 1, has 1 fields and names no columns"),
    ("0,0_0/1.jpg,3\n", "line 1, has 3 fields and names no columns that are known: give --age-columns .*'path,age'"),
    ("path,face\n0_0/1.jpg,3\n", "line 1, has 'face' where an age"), ("path,age\n", "no age for 4 of the 4"),
    (bytes(range(128, 256)) * 40, "line 1"), ("key,age\n0_0/1.jpg,3\n".encode("utf-16"), "UTF-16"),
    ("x" * 20_000, "line 1, has more than 10,000 characters"),
], ids=range(9))  # fmt: skip
def test_a_file_that_is_no_table_of_ages_is_refused_in_a_short_message(table, content, says):
    with pytest.raises(UserError, match=says) as caught:
        read_ages(table(content), KEYS)
    assert len(str(caught.value)) < 500 and "ages.csv" in str(caught.value)


@pytest.mark.parametrize("rows_at_once", [1, 2, 50_000])
@pytest.mark.parametrize("order", ["0_0/1.jpg,3\n0_0/2.jpg,4\n", "0_0/2.jpg,4\n0_0/1.jpg,3\n"])
def test_two_ages_of_one_picture_are_refused(table, monkeypatch, order, rows_at_once):
    monkeypatch.setattr(age_tables, "ROWS_AT_ONCE", rows_at_once)
    with pytest.raises(UserError, match=r"line \d, gives '\S*1.jpg' the age (3|9) and another line gives it (3|9)"):
        read_ages(table(order + "./0_0/1.jpg,9\n0_1/3.png,5\n0_1/4.jpg,6\n"), KEYS)


@pytest.mark.parametrize("rows_at_once", [1, 3, 50_000])
def test_unknown_keys_are_counted_and_named_or_left_out_on_demand(table, monkeypatch, rows_at_once):
    monkeypatch.setattr(age_tables, "ROWS_AT_ONCE", rows_at_once)
    lines = [f"x/{i}.jpg,5\n" for i in range(5)]
    path = table("key,age\n" + lines[0] + LAYOUTS["no header"] + "".join(lines[1:]))
    with pytest.raises(UserError) as caught:
        read_ages(path, KEYS)
    places = "(line 2: 'x/0.jpg', line 7: 'x/1.jpg', line 8: 'x/2.jpg', ...)"
    assert all(part in str(caught.value) for part in ("5 lines", places, "like '0_0/1.jpg'", "--allow-unknown"))
    read = read_age_table(path, KEYS, allow_unknown=True)
    assert (read.ages.tolist(), read.num_unknown) == ([3, 4, 5, 6], 5)


@pytest.mark.parametrize("key", ["../0_0/1.jpg", "/etc/0_0/1.jpg", "/data/faces2/0_0/1.jpg", "0_0", "", "0_0/1.jpg/"])
def test_paths_outside_the_folder_are_unknown(table, key):
    with pytest.raises(UserError, match="1 lines about pictures that are not in '/data/faces'"):
        read_ages(table(f"path,age\n{key},4\n"), Keys(["0_0/1.jp"]))


def test_pictures_without_an_age_are_counted_and_named_with_what_to_do(table):
    index = Keys([f"{i}.jpg" for i in range(9)])
    with pytest.raises(UserError) as caught:
        read_ages(table("3.jpg,1\n4.jpg,2\n8.jpg,3\n1.jpg,4\n"), index)
    for part in ("5 of the 9 pictures", "('0.jpg', '2.jpg', '5.jpg', ...)", "prepare.py ages", "--weights"):
        assert part in str(caught.value)


def test_ten_thousand_lines_in_order_take_no_memory_to_speak_of(tmp_path, monkeypatch):
    monkeypatch.setattr(age_tables, "ROWS_AT_ONCE", 500)

    class Counted(Keys):
        def key(self, i):
            return f"{i // 50}/{i:08d}.jpg"

    index, path = Counted(range(10_000)), tmp_path / "ages.csv"
    write_age_table(path, (index.key(i) for i in range(10_000)), np.arange(10_000) % 100)
    tracemalloc.start()
    try:
        ages = read_ages(path, index)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ages.tolist() == [i % 100 for i in range(10_000)]
    assert peak < 500_000  # bytes; a dict of these keys alone takes a million


MTLFACE = "0 0_0/1.jpg 3 0\n0 0_0/2.jpg 4 0\n1 0_1/3.png 5 1\n1 0_1/4.jpg 6 1\n"
OTHER_COLUMNS = {
    "MTLFace's lines without a header": (MTLFACE, None),
    "of the folder's own name": (MTLFACE.replace("0_", "faces/0_"), None),
    "names": ("Bild;x;Alter\n0_0/1.jpg;9;3\n0_0/2.jpg;9;4\n0_1/3.png;9;5\n0_1/4.jpg;9;6\n", ("bild", "ALTER")),
    "names that others would win over": ("path,key,age,years\n" + "".join(
        f"x,{key},1,{i}\n" for i, key in enumerate(KEYS.keys, 3)), ("key", "years")),
    "numbers": (MTLFACE, ("2", "3")),
    "numbers beside a header": ("who;file;years_old\n" + MTLFACE.replace(" ", ";").replace(";0\n", "\n").replace(
        ";1\n", "\n"), ("2", "3")),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_COLUMNS)
def test_columns_of_any_names(table, case):
    content, columns = OTHER_COLUMNS[case]
    assert read_ages(table(content), KEYS, columns=columns).tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(("columns", "says"), [
    (("file", "age"), "line 1, has no column 'file', it reads '0 0_0/1.jpg 3 0': give --age-columns two of its names"),
    (("2", "5"), "no column '5'.*two numbers from 1 to 4"), (("0", "3"), "no column '0'"),
    (("2", "1e0"), "no column '2'"),
])  # fmt: skip
def test_columns_that_are_not_there_are_a_sentence(table, columns, says):
    refused(read_ages, table(MTLFACE), KEYS, columns=columns, match=says)
