"""data/check/run.py and what it uses: every planted fault is found, and a good data set has none."""

import dataclasses
import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

import meta
from data.check import image_scan
from data.check.contradictions import Contradiction, contradiction_lines
from data.check.findings import OTHER_COUNT, Finding, is_wrong, report_lines, write_findings
from data.check.image_scan import equal_groups, scan_images, shared
from data.check.run import check
from data.faces import index_identity_folders
from data.pairs import find_pair_list, read_pair_list
from data.verification_bins import write_verification_bin
from meta import BENCHMARKS, TRAINING_SETS, WEIGHT_FILES, UserError
from utils.files import no_progress, sha256

TRAINING = TRAINING_SETS["ms1mv3"].folder
FGNET = BENCHMARKS["fgnet"].folders[0]
MORPH2 = BENCHMARKS["morph2"].unpacked_into
CALFW_FOLDER, CALFW_LIST = BENCHMARKS["calfw"].folders[0], BENCHMARKS["calfw"].pair_lists[0]
CACD_FOLDER, CACD_LIST = BENCHMARKS["cacd_vs"].folders[0], BENCHMARKS["cacd_vs"].pair_lists[0]


@pytest.fixture
def root(tiny_faces, tmp_path):
    """A copy of the made-up faces, to be spoilt."""
    return shutil.copytree(tiny_faces, tmp_path / "face_dataset")


def pictures(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".jpg")


def worse(findings):
    """Those that are no "ok" and do not only say that made-up sets are small."""
    return [found for found in findings if found.severity != "ok" and found.advice != OTHER_COUNT]


def make_bin(root, name="lfw.bin"):
    pairs = read_pair_list(find_pair_list(root, BENCHMARKS["calfw"]), root / CALFW_FOLDER)
    write_verification_bin(pairs, root / name)
    return root / name


def test_nothing_is_wrong_with_made_up_faces_and_nothing_is_changed(tiny_faces, tmp_path):
    def state():
        return sorted((str(path), path.stat().st_mtime_ns) for path in tiny_faces.rglob("*"))

    before = state()
    findings = check(tiny_faces, weights_root=tmp_path)
    assert {found.severity for found in worse(findings)} == {"missing"}  # the weight files
    assert [found.name for found in worse(findings)] == ["age_weights", "iefp_weights"]
    assert not is_wrong(findings)
    reply = {(found.name, found.what) for found in findings if found.severity == "ok"}
    assert ("ms1mv3", f"{TRAINING}: 6 identities, 18 images") in reply
    assert ("ms1mv3", f"{TRAINING}: all 18 pictures can be decoded") in reply
    assert ("morph2_10000", "gallery_10000: 5 identities, 5 images") in reply
    assert {("calfw", "20 pairs of 40 pictures"), ("calfw", "ten folds of 1 genuine and 1 impostor pairs")} <= reply
    assert state() == before


def test_other_counts_than_published_are_a_note_and_the_published_ones_are_none(root, monkeypatch):
    notes = [found for found in check(root, ["fgnet"]) if found.severity == "note"]
    assert [(found.what, found.advice) for found in notes] == [
        (f"{FGNET}: the published set has 82 identities, 1,002 images", OTHER_COUNT)
    ]
    same = dataclasses.replace(BENCHMARKS["fgnet"], num_identities=4, num_images=len(pictures(root / FGNET)))
    monkeypatch.setitem(meta._benchmarks, "fgnet", same)
    assert {found.severity for found in check(root, ["fgnet"])} == {"ok"}


def test_a_good_bin_is_reported_with_its_sha256(root):
    path = make_bin(root)
    findings = check(root, ["lfw.bin"])
    assert worse(findings) == []
    assert findings[0].what == f"20 pairs of 40 pictures, SHA-256 {sha256(path)}"
    assert "lfw.bin" in {found.name for found in check(root)}


@pytest.mark.parametrize("name", [*TRAINING_SETS, *BENCHMARKS, "age_weights", "iefp_weights"])
def test_what_is_not_there_is_wrong_only_if_it_was_named_and_its_source_is_told(tmp_path, name):
    findings = check(tmp_path, weights_root=tmp_path)
    assert {found.severity for found in findings} == {"missing"} and not is_wrong(findings)
    sources = {key: known.source for key, known in (TRAINING_SETS | BENCHMARKS).items()}
    sources |= {f"{key}_weights": known.source for key, known in WEIGHT_FILES.items()}
    named = check(tmp_path, [name], weights_root=tmp_path)
    assert named and {found.severity for found in named} == {"wrong"}
    assert all(found.name.startswith(name) and sources[name] in found.advice for found in named)


def test_an_unknown_name_and_a_missing_folder_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"'lfw.bin' is nothing that can be checked: give some of ms1mv3, fgnet, "):
        check(tmp_path, ["fgnet", "lfw.bin"])
    refused(check, tmp_path / "nowhere", match="nowhere' of data sets does not exist")


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def resize(path):
    with Image.open(path) as picture:
        picture.resize((64, 80)).save(path)


def turn(folder):
    """A second picture of the subject."""
    with Image.open(pictures(folder)[0]) as picture:
        picture.rotate(5).save(folder / f"{folder.name}_9{sex_of(folder)}77.JPG")


def sex_of(folder):
    """The letter in the names of MORPH2's pictures."""
    return pictures(folder)[0].stem.split("_")[1][1]


def move_all(folder, inner):
    inner.mkdir()
    for path in set(folder.iterdir()) - {inner}:
        path.rename(inner / path.name)


# Each spoils the folder of FG-NET; then what is found, with which severity and example.
FGNET_FAULTS = {
    "loose picture": (lambda at: shutil.copy(pictures(at)[0], at / "001A99.JPG"), "wrong",
                      "1 pictures lie directly in ", "001A99.JPG"),
    "too deep": (lambda at: move_all(at, at / "inner"), "wrong", "1 folders in '", "inner"),
    "no pictures": (lambda at: [path.unlink() for path in pictures(at)], "wrong", "holds no images", None),
    "other files": (lambda at: (at / "001" / "Thumbs.db").touch(), "note", "1 files in ", "001/Thumbs.db"),
    "empty folder": (lambda at: (at / "099").mkdir(), "note", "1 folders in ", "099"),
    "no age": (lambda at: pictures(at)[0].rename(at / "001" / "face.JPG"), "wrong",
               "1 of 15 file names hold no age", "001/face.JPG"),
    "impossible age": (lambda at: pictures(at)[0].rename(at / "001" / "001A121.JPG"), "wrong",
                       "1 of 15 file names hold no age, or none from 0 to 120", "001/001A121.JPG"),
    "truncated": (lambda at: rewrite(pictures(at)[0], lambda content: content[:700]), "wrong",
                  "1 of 15 pictures can't be decoded", ": image file is truncated"),
    "no picture": (lambda at: pictures(at)[1].write_bytes(b""), "wrong", "1 of 15 pictures can't be decoded",
                   ": it is not an image"),
    "dangling link": (lambda at: (at / "001" / "001A88.JPG").symlink_to("nowhere.jpg"), "wrong",
                      "1 of 16 pictures can't be decoded", "001/001A88.JPG: No such file"),
    "other size": (lambda at: resize(pictures(at)[0]), "note", "1 of 15 pictures are not 112x112 (64x80: 1)", None),
    "copy of another": (lambda at: shutil.copy(pictures(at / "001")[0], at / "002" / "002A77.JPG"), "wrong",
                        "1 pictures lie, byte for byte the same, under different", "002A77.JPG"),
    "copy of the same": (lambda at: shutil.copy(pictures(at / "001")[0], at / "001" / "001A77.JPG"), "wrong",
                         "1 pictures lie several times", "001/001A77.JPG"),
    "single picture": (lambda at: [path.unlink() for path in pictures(at / "003")[1:]], "note",
                       "1 identities have one picture", "003"),
}  # fmt: skip


@pytest.mark.parametrize("name", FGNET_FAULTS)
def test_a_fault_in_fgnet_is_found(root, name):
    fault, severity, what, example = FGNET_FAULTS[name]
    fault(root / FGNET)
    findings = worse(check(root, ["fgnet"]))
    (found,) = [found for found in findings if what in found.what]
    assert (found.name, found.severity) == ("fgnet", severity)
    assert example is None or example in found.examples[0] and example in found.what
    if name in ("too deep", "no pictures"):
        assert any("holds no images" in found.what for found in findings)  # whose sentence holds the advice
    else:
        assert found.advice and len(findings) == 1  # and nothing else


def test_faults_of_the_training_set_are_found_but_copies_are_notes(root):
    first, second = sorted(path for path in (root / TRAINING).iterdir())[:2]
    source = pictures(first)[0]
    shutil.copy(source, second / "99999999_age_20.jpg")
    shutil.copy(source, first / "99999998_age_20.jpg")
    rewrite(pictures(first)[2], lambda content: content[:700])
    pictures(second)[0].rename(second / "unnamed.jpg")
    findings = worse(check(root, ["ms1mv3"]))
    assert [(found.severity, found.what.split(" (")[0]) for found in findings] == [
        ("wrong", f"{TRAINING}: 1 of 20 file names hold no age, or none from 0 to 120"),
        ("wrong", f"{TRAINING}: 1 of 20 pictures can't be decoded"),
        ("note", "1 pictures lie, byte for byte the same, under different identities"),
    ]
    assert findings[2].examples[0].count(" = ") == 2


def test_a_training_set_without_any_ages_is_a_note_that_says_how_to_get_them(root):
    for path in pictures(root / TRAINING):
        path.rename(path.with_name(path.name.replace("_age_", "-")))
    (found,) = worse(check(root, ["ms1mv3"]))
    assert found.severity == "note" and "no file name holds an age" in found.what and "prepare.py ages" in found.advice


MORPH2_FAULTS = {  # spoils the gallery's and the probe's folder of a subject
    "probe alone": (lambda gallery, probe: shutil.rmtree(gallery), "wrong",
                    "1 subjects of the probes are not in the gallery ("),
    "gallery alone": (lambda gallery, probe: shutil.rmtree(probe), "note",
                      "1 subjects of the gallery have no probe ("),
    "second picture": (lambda gallery, probe: turn(probe), "wrong", "probe_3000: 1 subjects have several pictures ("),
    "younger probe": (lambda gallery, probe: pictures(probe)[0].rename(probe / f"{probe.name}_1{sex_of(probe)}16.JPG"),
                      "wrong",
                      "1 subjects are younger as a probe than in the gallery ("),
    "same picture": (lambda gallery, probe: shutil.copy(pictures(gallery)[0], pictures(probe)[0]), "wrong",
                     "1 pictures lie several times, byte for byte the same, under one identity ("),
    "one side only": (lambda gallery, probe: shutil.rmtree(gallery.parent), "wrong", "there is no folder "),
}  # fmt: skip


def test_contradictions_of_morph2s_subjects_are_a_note_by_their_names_and_by_the_list_beside_them(root):
    """8: as published they stay."""
    probes = sorted((root / MORPH2 / "probe_3000").iterdir())
    (picture,) = pictures(probes[0])
    other_sex = {"M": "F", "F": "M"}[sex_of(probes[0])]
    picture.rename(picture.with_name(picture.name.replace(sex_of(probes[0]), other_sex)))
    (found,) = worse(check(root, ["morph2"], quick=True))
    assert (found.name, found.severity) == ("morph2_3000", "note")
    assert found.what.startswith("1 subjects contradict themselves (sex 1)")
    assert found.examples[0].startswith(f"{probes[0].name}: sex: ") and "--contradictions drop" in found.advice
    listed = [Contradiction(int(probes[1].name), "race", "B in a.JPG; W in b.JPG"), Contradiction(7, "race", "B; W")]
    (root / MORPH2 / "contradictions.csv").write_text(contradiction_lines(listed))
    small, large = worse(check(root, ["morph2"], quick=True))
    assert "2 subjects contradict themselves (sex 1, race 1)" in small.what and len(small.examples) == 2
    assert "1 subjects contradict themselves (race 1)" in large.what and large.name == "morph2_10000"
    for text, words in (("subject,what\n", "has the column 'pictures' 0 times"),
                        ("subject,what,pictures\n7,age,x\n", "line 2, reads '7,age,x'")):  # fmt: skip
        (root / MORPH2 / "contradictions.csv").write_text(text)
        found, _ = worse(check(root, ["morph2"], quick=True))
        assert found.severity == "wrong" and words in found.what


@pytest.mark.parametrize("name", MORPH2_FAULTS)
def test_a_fault_in_one_setting_of_morph2_is_found_there_alone(root, name):
    fault, severity, what = MORPH2_FAULTS[name]
    probe = min((root / MORPH2 / "probe_3000").iterdir())
    fault(root / MORPH2 / "gallery_3000" / probe.name, probe)
    (found,) = worse(check(root, ["morph2"]))
    assert (found.name, found.severity) == ("morph2_3000", severity)
    assert found.what.startswith(what)
    assert name == "one side only" or probe.name in found.examples[0]


def edit_list(root, edit, place=CALFW_LIST):
    """edit(lines) -> lines, of names and answer each."""
    path = root / place
    lines = edit([line.split() for line in path.read_text().splitlines()])
    path.write_text("".join(" ".join(line) + "\n" for line in lines))


def genuine_first(root):
    edit_list(root, lambda lines: sorted(lines, key=lambda line: line[2], reverse=True))


def copy_picture(root, one, other):
    """Puts the picture of one place (line, side) of the list under the name of the other's."""
    lines = [line.split() for line in (root / CALFW_LIST).read_text().splitlines()]
    shutil.copy(root / CALFW_FOLDER / lines[one[0]][one[1]], root / CALFW_FOLDER / lines[other[0]][other[1]])


CALFW_FAULTS = {
    "missing picture": (lambda root: pictures(root / CALFW_FOLDER)[3].unlink(), "wrong",
                        "1 pictures, needed by 1 pairs, have no file ("),
    "genuine first": (genuine_first, "wrong",
                      "10 of the ten folds are out of balance ('fold 1: 2 genuine, 0 impostor'"),
    "wrong answer": (lambda root: edit_list(root, lambda lines: [[*lines[0][:2], "0"], *lines[1:]]), "wrong",
                     "1 of the ten folds are out of balance ('fold 1: 0 genuine, 2 impostor')"),
    "more pairs": (lambda root: edit_list(root, lambda lines: [*lines, lines[0], lines[1]]), "wrong",
                   "of the ten folds are out of balance ('fold 1: 2 genuine, 1 impostor'"),
    "malformed": (lambda root: edit_list(root, lambda lines: [lines[0], ["a.jpg", "b.jpg"], *lines[2:]]), "wrong",
                  "line 2, reads 'a.jpg b.jpg'"),
    "impostor of one picture": (lambda root: copy_picture(root, (1, 0), (1, 1)), "wrong",
                                "1 impostor pairs are of two identical pictures ("),
    "genuine of one picture": (lambda root: edit_list(root, lambda lines: [
        [lines[0][0], lines[0][0], "1"], *lines[1:]]), "note", "1 genuine pairs are of two identical pictures ("),
    "pair twice": (lambda root: edit_list(root, lambda lines: [
        *lines[:2], [lines[0][1], lines[0][0], "1"], *lines[3:]]), "note", "1 pairs come more than once ("),
    "two names": (lambda root: copy_picture(root, (0, 0), (5, 0)), "note",
                  "1 pictures lie under several names, byte for byte the same ("),
    "no list": (lambda root: (root / CALFW_LIST).unlink(), "wrong", "there is no list "),
    "no folder": (lambda root: shutil.rmtree(root / CALFW_FOLDER), "wrong", "there is a list "),
    "broken picture": (lambda root: rewrite(pictures(root / CALFW_FOLDER)[0], lambda content: content[:700]), "wrong",
                       "processed_CALFW_2: 1 of 40 pictures can't be decoded"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALFW_FAULTS)
def test_a_fault_in_calfw_is_found(root, name):
    fault, severity, what = CALFW_FAULTS[name]
    fault(root)
    findings = check(root, ["calfw"])
    found = [found for found in worse(findings) if what in found.what]
    assert [(found.name, found.severity) for found in found] == [("calfw", severity)]
    if name == "missing picture":  # folds are those of the whole list
        assert "ten folds of 1 genuine and 1 impostor pairs" in {found.what for found in findings}
        assert len([found for found in findings if found.severity == "wrong"]) == 1


def test_pictures_that_cannot_be_read_are_not_taken_for_copies(root):
    impostor = (root / CALFW_LIST).read_text().splitlines()[1].split()
    for name in impostor[:2]:
        (root / CALFW_FOLDER / name).write_bytes(b"no picture")
    (found,) = worse(check(root, ["calfw"]))
    assert "2 of 40 pictures can't be decoded" in found.what
    edit_list(root, lambda lines: [lines[0], [impostor[0], impostor[0], "0"], *lines[2:]])
    reply = {found.what.split(" (")[0] for found in worse(check(root, ["calfw"]))}
    assert "1 impostor pairs are of two identical pictures" in reply  # it is one picture, whatever it shows


def test_cacd_vs_without_its_list_goes_by_the_rule_and_counts_what_is_missing(root):
    (root / CACD_LIST).unlink()
    findings = worse(check(root, ["cacd_vs"]))
    assert [(found.severity, found.what.split(" (")[0]) for found in findings] == [
        ("note", "there is no list, so the pairs are made by its rule"),
        ("wrong", "7,960 pictures, needed by 3,980 pairs, have no file"),
    ]
    assert len(findings[1].examples) == 1000  # a report is no list of everything


def test_a_bin_that_is_broken_or_asks_for_more_is_wrong(root):
    path = make_bin(root)
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    (found,) = worse(check(root, ["lfw.bin"]))
    assert found.severity == "wrong" and "cannot be read as a verification set" in found.what
    start = (root / CALFW_FOLDER / "P0001_0001.jpg").read_bytes()[:40]
    path.write_bytes(content.replace(start, b"x" * 40, 1))
    (found,) = worse(check(root, ["lfw.bin"]))
    assert "lfw.bin: 1 of 40 pictures can't be decoded ('lfw.bin image " in found.what


@pytest.mark.parametrize("of_own", ["note", "wrong"])
def test_the_folds_of_a_bin_of_your_own_are_a_note_unless_one_is_of_one_kind(root, of_own):
    """14: what no protocol tests is wrong in every set, a mere imbalance in published ones only."""
    genuine_first(root)
    if of_own == "note":  # two genuine pairs to an impostor pair in each fold
        edit_list(root, lambda lines: [line for i in range(10) for line in (lines[i], lines[10 + i], lines[i])])
    for name, severity in (("lfw.bin", "wrong"), ("mine.bin", of_own)):
        make_bin(root, name)
        (found,) = [found for found in worse(check(root, [name])) if "folds" in found.what]
        assert found.severity == severity and "10 of the ten folds are out of balance" in found.what


def test_people_of_the_same_name_are_wrong_and_of_the_same_number_a_note(root):
    people = sorted((root / TRAINING).iterdir())
    people[0].rename(root / TRAINING / "P0001")  # as in CALFW's file names
    people[1].rename(root / TRAINING / "001")  # as FG-NET's folders
    findings = worse(check(root, ["ms1mv3", "fgnet", "calfw"]))
    assert [(found.name, found.severity, found.what) for found in findings] == [
        ("fgnet", "note", "1 identities have the same number in ms1mv3 ('001')"),
        ("calfw", "wrong", "1 identities have the same name in ms1mv3 ('P0001')"),
    ]
    assert "most likely others" in findings[0].advice
    assert worse(check(root, ["fgnet", "calfw"])) == []  # there is nothing to compare with


def test_a_picture_that_is_in_training_and_a_benchmark_is_wrong(root):
    source = pictures(root / TRAINING)[4]
    shutil.copy(source, root / FGNET / "004" / "004A60.JPG")
    make_bin(root)
    findings = worse(check(root, ["ms1mv3", "fgnet", "lfw.bin"]))
    assert [(found.name, found.severity) for found in findings] == [("fgnet", "wrong")]
    assert findings[0].examples == (f"{source.relative_to(root / TRAINING)} = 004/004A60.JPG",)
    assert "1 pictures are in ms1mv3 too, byte for byte" in findings[0].what


def write_weights(folder, content):
    path = folder / WEIGHT_FILES["iefp"].path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as file:
        file.writestr("archive/data.pkl", b"x" * 5000)
    return (tmp_path / "some.zip").read_bytes()


@pytest.mark.parametrize(("content", "what"), [
    (b"", "is empty"), (b"\n<!DOCTYPE html><html>Google Drive can't scan", "is a web page, no weight file"),
    (b"GIF89a", "is a GIF picture, no weight file"), (b"\0\1", "is no weight file"),
    ("half", "has no end, the download stopped early"),
])  # fmt: skip
def test_a_weight_file_that_is_none_is_wrong_and_its_source_is_told(tmp_path, content, what):
    path = write_weights(tmp_path, archive(tmp_path)[:2000] if content == "half" else content)
    (found,) = check(tmp_path, ["iefp_weights"], weights_root=tmp_path)
    assert (found.severity, found.what) == ("wrong", f"{str(path)!r} {what}")
    assert WEIGHT_FILES["iefp"].source in found.advice


def test_a_weight_file_is_reported_with_size_sha256_and_what_it_holds_or_why_the_reader_refuses_it(tmp_path):
    path = write_weights(tmp_path, archive(tmp_path))

    def checked(**how):
        (found,) = check(tmp_path, ["iefp_weights"], weights_root=tmp_path, **how)
        return found.severity, found.what

    def refuse(path):
        raise UserError(f"{path.name} holds a list")

    says = f"{path.stat().st_size:,} bytes, SHA-256 {sha256(path)}"
    assert checked() == ("ok", says)
    assert checked(read_weights=lambda given: f"iresnet50 of {given.name}") == (
        "ok",
        f"iresnet50 of {path.name}, {says}",
    )
    assert checked(read_weights=refuse) == ("wrong", f"{path.name} holds a list")


def test_quick_reads_headers_and_finds_copies_but_no_picture_that_breaks_off(root):
    FGNET_FAULTS["truncated"][0](root / FGNET)
    findings = check(root, ["fgnet"], quick=True)
    assert worse(findings) == []
    assert any("all 15 pictures have a sound header (--quick: not decoded)" in found.what for found in findings)
    FGNET_FAULTS["no picture"][0](root / FGNET)
    FGNET_FAULTS["copy of another"][0](root / FGNET)
    findings = worse(check(root, ["fgnet"], quick=True))
    assert len(findings) == 2 and {found.severity for found in findings} == {"wrong"}


@pytest.mark.parametrize("quick", [False, True])
def test_worker_processes_find_the_same_as_none(root, monkeypatch, quick):
    FGNET_FAULTS["no picture"][0](root / FGNET)
    FGNET_FAULTS["other size"][0](root / FGNET)
    monkeypatch.setattr(image_scan, "FEW", 0)
    faces = index_identity_folders(root / FGNET, None)
    alone, together = (scan_images(faces, quick, workers, no_progress, "") for workers in (0, 2))
    assert np.array_equal(alone.digests, together.digests) and np.array_equal(alone.sizes, together.sizes)
    assert alone.failures == together.failures and len(alone.failures) == 1
    assert all(not alone.digests[i].any() and not alone.sizes[i].any() for i in alone.failures)


digest_arrays = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=12).map(
    lambda rows: np.array(rows, dtype=np.uint64).reshape(len(rows), 2)
)


@given(digest_arrays)
def test_equal_groups_are_those_of_the_plain_way(digests):
    groups = {}
    for i, row in enumerate(digests.tolist()):
        if any(row):  # zeros are pictures that could not be read
            groups.setdefault(tuple(row), []).append(i)
    assert equal_groups(digests) == sorted(group for group in groups.values() if len(group) > 1)


@given(digest_arrays, digest_arrays)
def test_shared_pictures_are_those_of_the_plain_way(one, other):
    expected = []
    for i, row in enumerate(one.tolist()):
        places = [k for k, candidate in enumerate(other.tolist()) if candidate == row and any(row)]
        expected += [(i, places[-1])] if places else []
    assert shared(one, other) == expected


FINDINGS = [
    Finding("fgnet", "ok", "82 identities"),
    Finding("morph2_3000", "wrong", "1 subject", "exchange them", ("a\udce9.jpg", "b.jpg")),
]


def test_the_report_has_columns_and_says_below_what_to_do():
    assert report_lines(FINDINGS) == [
        "fgnet        ok       82 identities",
        "morph2_3000  wrong    1 subject",
        "                      -> exchange them",
    ]
    assert report_lines([]) == []


def test_findings_are_written_as_json_and_never_over_a_file_that_is_there(tmp_path):
    path = tmp_path / "new" / "check.json"
    write_findings(path, FINDINGS)
    content = json.loads(path.read_text())
    assert content["wrong"] is True
    assert content["findings"][0] == {
        "name": "fgnet", "severity": "ok", "what": "82 identities", "advice": "", "examples": []
    }  # fmt: skip
    assert content["findings"][1]["examples"] == ["a\udce9.jpg", "b.jpg"]
    refused(write_findings, path, [], match="check.json' exists")
    write_findings(path, FINDINGS[:1], force=True)
    assert json.loads(path.read_text())["wrong"] is False
    assert os.listdir(path.parent) == ["check.json"]


def test_names_from_the_disk_do_not_steer_a_terminal(root):
    (root / FGNET / "001" / "\x1b[31m.txt").touch()
    (found,) = worse(check(root, ["fgnet"]))
    assert found.what.isprintable() and "\\x1b[31m.txt" in found.what
