"""data/lists/pair_lists.py: pair lists of every spelling read the same, and each mistake in one is a sentence."""

import contextlib
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.lists.pair_lists import read_any_pair_list
from meta import UserError

PEOPLE = [f"p{i:02d}" for i in range(40)]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Two pictures of each of 40 people, and two with blanks and a comma in their names."""
    folder = tmp_path_factory.mktemp("lists") / "my faces"
    for person in PEOPLE:
        (folder / person).mkdir(parents=True)
        for number in (1, 2):
            (folder / person / f"{person}_{number:04d}.jpg").touch()
    for name in ("An na/a b.jpg", "Smith, J.PNG"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "pairs.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def picture(person: int, number: int = 1) -> str:
    return f"{PEOPLE[person]}/{PEOPLE[person]}_{number:04d}.jpg"


# Ten folds of a genuine and an impostor pair, in list order.
PAIRS = [pair for k in range(10) for pair in ((picture(k), picture(k, 2), 1), (picture(k), picture(k + 20), 0))]


def pairs_of(pairs):
    name = pairs.images.name
    rows = zip(pairs.first.tolist(), pairs.second.tolist(), pairs.genuine.tolist(), strict=True)
    return [(name(a), name(b), int(same)) for a, b, same in rows]


def lines(form: str, pairs=PAIRS, header: str = "") -> str:
    return header + "".join(form.format(a=a, b=b, same=same, no=1 - same, k=i // 2) + "\n"
                            for i, (a, b, same) in enumerate(pairs))  # fmt: skip


SPELLINGS = {
    "blanks": lines("{a} {b} {same}"),
    "blanks and -1": lines("{a}   {b} {same}").replace(" 0\n", " -1\n"),
    "tabs": lines("{a}\t{b}\t{same}"),
    "the answer first": lines("{same},{a},{b}"),
    "a header": lines("{a},{b},{same}", header="name_a,name_b,label\n"),
    "a header in another order": lines("{no};{same};{b};x;{a}", header="id;is_same;img2;note;img1\n"),
    "words": lines('"{a}"\t"{b}"\t{same}', header="file1\tfile2\tmatch\n").replace("\t1\n", "\tTrue\n")
    .replace("\t0\n", "\tfalse\n"),
    "a header with blanks": lines("{a}\t{b}\t{same}", header="First image\tSecond image\tSame person\n"),
    "paths of pictures": lines("{a},{b},{same}", header="img1_path,img2_path,label\n"),
    "Windows": "\ufeff" + lines("{a},{b},{same}", header="Path_A,Path_B,Same\n").replace("\n", "\r\n"),
    "no endings": lines("{a},{b},{same}").replace(".jpg", ""),
    "backslashes": lines("{a},{b},{same}").replace("/", "\\"),
    "another ending": lines("{a},{b},{same}").replace(".jpg", ".png"),
    "the folder's name": lines("my faces/{a},my faces/{b},{same}"),
    "LFW's counts": "10\t1\n" + "".join(f"{PEOPLE[k]}\t1\t2\n{PEOPLE[k]}\t1\t{PEOPLE[k + 20]}\t1\n" for k in range(10)),
    "LFW without counts": "".join(f"{PEOPLE[k]} 1 2\n{PEOPLE[k]} 1 {PEOPLE[k + 20]} 1\n" for k in range(10)),
    "a column of folds": "a,b,same,fold\n" + "".join(  # all genuine pairs stand first
        f"{a},{b},{same},{k % 10}\n" for k, (a, b, same) in enumerate(PAIRS[::2] + PAIRS[1::2])),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_reads_the_same(write, faces, spelling):
    pairs, notes = read_any_pair_list(write(SPELLINGS[spelling]), faces)
    assert pairs_of(pairs) == PAIRS
    how = "by the column 'fold'" if spelling == "a column of folds" else "by the order of the list"
    assert f"20 pairs, folds {how}" in notes[0]
    renamed = spelling.startswith(("no ", "back", "another", "the folder", "LFW"))
    assert len(notes) == 1 + renamed and all("30 pictures are found" in note for note in notes[1:])


@pytest.mark.parametrize("form", ["{a} {b} {same}", '"{a}" "{b}" {same}', "{a}\t{b}\t{same}", '"{a}","{b}",{same}'])
def test_names_with_blanks_and_commas(write, faces, form):
    odd = [("An na/a b.jpg", "Smith, J.PNG", 0), ("Smith, J.PNG", "An na/a b.jpg", 1)]
    pairs, _ = read_any_pair_list(write(lines(form, odd + PAIRS)), faces)
    assert sorted(pairs_of(pairs)) == sorted(odd + PAIRS)


def test_whole_paths_and_letters_in_two_parts(write, faces):
    name = "Zoë.jpg"
    (faces / unicodedata.normalize("NFC", name)).touch()
    odd = [(str(faces.absolute() / picture(0)), unicodedata.normalize("NFD", name), 0)]
    pairs, _ = read_any_pair_list(write(lines("{a},{b},{same}", odd + PAIRS)), faces)
    assert (picture(0), unicodedata.normalize("NFC", name), 0) in pairs_of(pairs)


@pytest.mark.parametrize(("num_genuine", "num_impostor"), [(10, 10), (15, 10), (11, 19), (20, 10), (19, 20)])
def test_folds_are_dealt_where_the_order_gives_none(write, faces, num_genuine, num_impostor):
    """Each has both kinds, in shares as equal as can be; either kind keeps its order."""
    genuine = [(picture(k), picture(k, 2), 1) for k in range(num_genuine)]
    impostors = [(picture(k), picture(k + 20), 0) for k in range(num_impostor)]
    pairs, (note,) = read_any_pair_list(write(lines("{a} {b} {same}", genuine + impostors)), faces)
    assert "folds dealt so that each has both kinds, since the tenths of the list in its order lack one" in note
    found = pairs_of(pairs)
    assert [pair for pair in found if pair[2]] == genuine and [pair for pair in found if not pair[2]] == impostors
    folds = np.array_split(pairs.genuine, 10)
    assert {int(fold.sum()) for fold in folds} <= {num_genuine // 10, -(-num_genuine // 10)}
    assert all(0 < fold.sum() < len(fold) for fold in folds)


def test_a_column_of_other_folds_is_no_reason_to_stop(write, faces):
    text = lines("{a},{b},{same},{k}", header="a,b,same,split\n").replace(",9\n", ",8\n")
    pairs, (note,) = read_any_pair_list(write(text), faces)
    assert "since the column 'split' does not give ten folds of one size" in note and len(pairs) == 20


GOOD = lines("{a},{b},{same}")
MISTAKES = {
    "nothing": ("\n", "holds no pairs"),
    "a header alone": ("a,b,label\n", "holds no pairs below its header"),
    "a header that names nothing known": ("who,whom,why\n" + GOOD, r"line 1, reads 'who,whom,why', which names no c"),
    "no answer": ("a,b\n" + GOOD, "names no columns of two pictures and an answer that are known"),
    "one kind": (lines("{a} {b} {same}", PAIRS[::2]), "holds genuine pairs only, 10 of them"),
    "the other kind": (lines("{a} {b} {same}", PAIRS[1::2]), "holds impostor pairs only, 10 of them"),
    "few of a kind": (lines("{a} {b} {same}", PAIRS[:-1]), "10 genuine and 9 impostor pairs: ten folds need ten"),
    "no yes and no no": (GOOD + "x.jpg,y.jpg,maybe\n", r"line 21, has 'maybe' where 1 \(same person\) or 0"),
    "a field too many": (GOOD + "x.jpg,y.jpg,1,2\n", r"line 21, reads .* has 4 fields where the first line has 3"),
    "unknown names": (GOOD.replace(picture(3), "who.jpg"), r"lacks 1 of the 30 images in the pair list \('who.jpg'\)"),
    "a place outside": (GOOD.replace(picture(3), "../who.jpg"), "names '../who.jpg' outside the folder of images"),
    "counts that are wrong": (SPELLINGS["LFW's counts"].replace("10\t1", "10\t300"), "6,000 in all: get it again"),
    "half of LFW's": (SPELLINGS["LFW's counts"] + "Anna 1\n", "line 22, reads 'Anna 1': 'name 1 2' or "),
    "a web page": ("<!doctype html>", "is a web page, no pair list"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(write, faces, mistake):
    text, words = MISTAKES[mistake]
    with pytest.raises(UserError, match=words) as caught:
        read_any_pair_list(write(text), faces)
    assert "\n" not in str(caught.value)


WORDS = st.sampled_from(["a", "p00", "1", "0", "-1", "17", "9" * 5000, "same", "fold", "name_a", "b", '"', ",", ";",
                         "\t", " ", "\n", "\0", "/", "..", picture(0), picture(1, 2)])  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=40).map("".join)))
def test_any_text_is_a_list_or_refused_in_a_sentence(tmp_path_factory, faces, text):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(UserError):
        read_any_pair_list(path, faces, allow_missing=True)


def test_pairs_without_pictures_are_left_out_where_asked_and_the_folds_stay(write, faces):
    text = GOOD.replace(picture(3), "who.jpg")
    pairs, _ = read_any_pair_list(write(text), faces, allow_missing=True)
    assert pairs.missing == ("who.jpg",) and pairs.num_pairs_dropped == 2
    assert pairs_of(pairs) == [pair for pair in PAIRS if picture(3) not in pair]
