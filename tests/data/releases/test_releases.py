"""data/releases/: small raw releases as published -> what train and test read."""

# ruff: noqa: F811 (fixtures)

import csv
import io
import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image
from raw_releases import (  # noqa: F401 (fixtures)
    CALFW,
    FGNET_FILES,
    FGNET_RESULT,
    MORPH2_FILES,
    calfw_text,
    draw,
    fgnet,
    interrupt,
    morph2,
    names_in,
    write_csv,
    write_pts,
)

from data.alignment.template import TEMPLATE
from data.check.contradictions import (
    described_by_name,
    find_contradictions,
    parse_date,
    read_contradictions,
)
from data.faces import index_identity_folders
from data.finding import find_below, find_pictures
from data.pairs import find_pair_list, read_pair_list
from data.releases import mat as release_mat
from data.releases.agedb import plan_agedb, read_agedb_pairs
from data.releases.aligned_folders import write_plan
from data.releases.cacd import plan_cacd, plan_cacd_vs
from data.releases.calfw import plan_calfw, read_calfw_pairs
from data.releases.fgnet import plan_fgnet
from data.releases.morph2 import (
    Morph2Picture,
    draw_subjects,
    plan_morph2,
    read_morph2_table,
    read_subjects,
    youngest_and_oldest,
)
from data.transforms import decode_face
from meta import BENCHMARKS, FILENAME_PATTERNS, UserError


def assert_aligned(path):
    """Whether the five dots lie on the template."""
    pixels = decode_face(path)[0].numpy().astype(float)
    y, x = np.mgrid[:112, :112]
    for u, v in TEMPLATE:
        near = (x - u) ** 2 + (y - v) ** 2 < 6**2
        weight = np.maximum(pixels - np.median(pixels[near]) - 30, 0) * near
        assert weight.sum() > 500, (path, u, v)
        assert np.hypot((weight * x).sum() / weight.sum() - u, (weight * y).sum() / weight.sum() - v) < 0.25, path


def draw_all(folder, names):
    """Pictures of these names, and their points by name."""
    return {name: draw(folder / name, seed) for seed, name in enumerate(names)}


def refused(call, *words):
    with pytest.raises(UserError) as caught:
        call()
    assert str(caught.value).isprintable()
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_fgnet_becomes_the_benchmarks_folders_with_published_names_and_dots_on_the_template(fgnet, tmp_path):
    plan = plan_fgnet(fgnet)
    assert plan.counts() == {"ID_processed_FGNET": (6, 3)}
    assert names_in(tmp_path / "raw") == names_in(fgnet) and not (tmp_path / "out").exists()  # a plan writes nothing
    written = write_plan(plan, tmp_path / "out")
    assert written.counts == plan.counts() and written.left_out == [] and written.left_out_path is None
    benchmark = BENCHMARKS["fgnet"]
    folder = tmp_path / "out" / benchmark.folders[0]
    faces = index_identity_folders(folder, FILENAME_PATTERNS[benchmark.pattern])
    assert names_in(folder) == [faces.name(i) for i in range(len(faces))] == FGNET_RESULT
    assert faces.ages.tolist() == [2, 5, 43, 43, 0, 69]
    for i in range(len(faces)):
        assert_aligned(faces.path(i))
        with Image.open(faces.path(i)) as picture:
            assert (picture.format, picture.size, picture.mode) == ("JPEG", (112, 112), "RGB")
    # The sheet stands beside the folder, where no index looks, and nothing else is left.
    assert sorted(os.listdir(tmp_path / "out")) == ["ID_processed_FGNET", "ID_processed_FGNET_alignment.png"]
    assert written.sheet == tmp_path / "out" / "ID_processed_FGNET_alignment.png"


def test_two_processes_write_the_same_bytes_as_one_and_other_sizes_frame_the_face_alike(fgnet, tmp_path):
    one = write_plan(plan_fgnet(fgnet), tmp_path / "one").folder
    two = write_plan(plan_fgnet(fgnet), tmp_path / "two", workers=2).folder
    assert names_in(one) == names_in(two) == FGNET_RESULT
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in FGNET_RESULT)
    # At another size, by a table of points that stands for the release's own.
    points = {f"/elsewhere/Images/{name}": draw(fgnet / "FGNET" / "Images" / name, seed + 50)
              for seed, name in enumerate(FGNET_FILES)}  # fmt: skip
    plan = plan_fgnet(fgnet, write_csv(tmp_path / "points.csv", points))
    large = write_plan(plan, tmp_path / "large", size=224).folder
    for name in FGNET_RESULT:
        assert_aligned(large / name)  # decode_face resizes it
    with Image.open(large / FGNET_RESULT[0]) as picture:
        assert picture.size == (224, 224)


def test_pictures_that_cannot_be_used_stop_the_work_and_are_listed(fgnet, tmp_path):
    images, points = fgnet / "FGNET" / "Images", fgnet / "FGNET" / "points"
    (points / "001a02.pts").unlink()
    (points / "001a05.pts").write_text("version: 1\n")
    write_pts(points / "002a00.pts", TEMPLATE[[1, 0, 2, 3, 4]], "fgnet")
    draw(images / "holiday.jpg", 9)
    out = tmp_path / "out"
    refused(lambda: write_plan(plan_fgnet(fgnet), out), "4 pictures of FG-NET can't be used", "--allow-missing",
            "'001A02.JPG': no landmarks", "ID_processed_FGNET_left_out.csv", "; ...")  # fmt: skip
    assert names_in(out) == ["ID_processed_FGNET_left_out.csv"]
    with open(out / "ID_processed_FGNET_left_out.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["picture", "reason"]
    reasons = dict(rows)
    assert reasons["holiday.jpg"] == "its name is not like 001A02.JPG"
    assert "ends after 0 points" in reasons["001a05.jpg"] and "wrong order" in reasons["002A00.JPG"]

    (images / "082A69.JPG").write_bytes(b"no picture")  # found only when it is decoded
    written = write_plan(plan_fgnet(fgnet), out, allow_missing=True)
    assert written.counts == {"ID_processed_FGNET": (2, 1)} and len(written.left_out) == 5
    assert names_in(written.folder) == FGNET_RESULT[2:4]
    assert "it is not an image" in written.left_out_path.read_text()


@pytest.mark.parametrize("landmarks", ["the same", "others"])
def test_interrupted_work_leaves_nothing_under_the_folders_name_and_goes_on_where_it_was(
    fgnet, tmp_path, interrupt, landmarks
):
    """With other landmarks it begins anew, and nothing of the work before is mixed in."""
    interrupt(4)
    with pytest.raises(KeyboardInterrupt):
        write_plan(plan_fgnet(fgnet), tmp_path / "out")
    assert not (tmp_path / "out" / "ID_processed_FGNET").exists()
    (hidden,) = (tmp_path / "out").iterdir()
    assert hidden.name.startswith(".") and len(names_in(hidden)) == 4
    (hidden / "001" / ".001A02.JPG.99.part").write_bytes(b"of a process that was killed")
    if landmarks == "others":
        write_pts(fgnet / "FGNET" / "points" / "001a02.pts", TEMPLATE + 7, "fgnet")
    interrupt(None)
    written = write_plan(plan_fgnet(fgnet), tmp_path / "out")
    assert written.num_kept == (4 if landmarks == "the same" else 0) and names_in(written.folder) == FGNET_RESULT
    assert not any(name.startswith(".") for name in os.listdir(tmp_path / "out"))


def test_the_same_work_again_is_done_at_once_and_other_work_is_refused_without_force(fgnet, tmp_path, interrupt):
    first = write_plan(plan_fgnet(fgnet), tmp_path / "out")
    interrupt(0)
    again = write_plan(plan_fgnet(fgnet), tmp_path / "out")
    assert (again.counts, again.num_kept, again.left_out) == (first.counts, 6, [])
    refused(
        lambda: write_plan(plan_fgnet(fgnet), tmp_path / "out", size=224), "exists: give another --output", "--force"
    )
    (first.folder / FGNET_RESULT[0]).unlink()
    refused(lambda: write_plan(plan_fgnet(fgnet), tmp_path / "out"), "exists: give another --output")
    again = write_plan(plan_fgnet(fgnet), tmp_path / "out", allow_missing=True)
    assert (again.counts, len(again.left_out)) == ({"ID_processed_FGNET": (5, 3)}, 1)
    (first.folder / "001" / "mine.jpg").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        write_plan(plan_fgnet(fgnet), tmp_path / "out", force=True)
    interrupt(None)
    assert (first.folder / "001" / "mine.jpg").exists()
    assert names_in(write_plan(plan_fgnet(fgnet), tmp_path / "out", force=True).folder) == FGNET_RESULT  # as a whole


def test_what_a_folder_is_made_from_is_never_replaced_by_it_and_two_pictures_of_one_name_are_refused(fgnet, tmp_path):
    fgnet.rename(tmp_path / "ID_processed_FGNET")
    images = tmp_path / "ID_processed_FGNET" / "FGNET" / "Images"
    plan = plan_fgnet(tmp_path / "ID_processed_FGNET")
    refused(lambda: write_plan(plan, tmp_path, force=True), "which is to be written: move it")
    assert (images / "001A02.JPG").exists()
    draw(images / "more" / "001A02.jpg", 0)
    refused(
        lambda: write_plan(plan_fgnet(tmp_path / "ID_processed_FGNET"), tmp_path / "out"),
        "would both become '001/001A02",
    )
    for name in ("x/0000_0.jpg", "y/0000_0.jpg"):
        draw(tmp_path / "raw" / name, 0)
    refused(lambda: plan_cacd_vs(tmp_path / "raw", already_aligned=True), "'x/0000_0.jpg' and 'y/0000_0.jpg'")


def test_a_release_without_landmarks_says_what_to_give(fgnet, tmp_path):
    refused(lambda: plan_fgnet(fgnet / "FGNET" / "Images"), "no folder 'points'", "--landmarks", "--already-aligned")
    for plan in (plan_cacd_vs, plan_cacd):
        refused(lambda plan=plan: plan(fgnet), "no landmarks of its own", "--landmarks", "--already-aligned")
    refused(lambda: plan_cacd(fgnet, tmp_path / "x.csv", already_aligned=True), "contradict each other")
    refused(lambda: plan_fgnet(tmp_path / "gone"), "gone", "cannot be read")
    (tmp_path / "empty").mkdir()
    refused(lambda: plan_fgnet(tmp_path / "empty", already_aligned=True), "holds no pictures")


def test_aligned_pictures_are_copied_or_resized_as_the_loader_would(fgnet, tmp_path):
    images = fgnet / "FGNET" / "Images"
    for size, name in ((112, "001A02.JPG"), (256, "001a05.jpg")):
        with Image.open(images / name) as picture:
            picture.resize((size, size)).save(images / name, "JPEG", quality=80, comment="as it is")
    folder = write_plan(plan_fgnet(fgnet, already_aligned=True), tmp_path / "out").folder
    assert (folder / "001" / "001A02.JPG").read_bytes() == (images / "001A02.JPG").read_bytes()
    difference = decode_face(folder / "001" / "001A05.JPG").float() - decode_face(images / "001a05.jpg").float()
    assert difference.abs().mean() < 1  # JPEG of quality 95


def test_pictures_are_searched_through_links_once_and_not_in_hidden_folders(tmp_path):
    for name in ("a/b.JPG", "c.png", ".hidden/d.jpg", ".e.jpg", "f.txt", "g.jpg/h.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "i.jpg").touch()
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "other")
    found = find_pictures(tmp_path)
    assert [name for name in found if not name.endswith("i.jpg")] == ["a/b.JPG", "c.png", "g.jpg/h.jpg"]
    assert len(found) == 4
    (tmp_path / "other" / "IMAGES").mkdir()
    assert find_below(tmp_path / "other", "images", directory=True) == tmp_path / "other" / "IMAGES"
    (tmp_path / "other" / "images").mkdir()
    refused(lambda: find_below(tmp_path / "other", "images", directory=True), "are both there")


# Subject 3 has pictures of one age, subject 4 a single picture; 1 and 2 have ties at both ends.
CHOICE = {1: ("000001_1M22.JPG", "000001_3M41.JPG"), 2: ("00002_00F17.JPG", "00002_01F19.JPG"),
          3: ("000003_4M50.JPG", "000003_5M50.JPG"), 5: ("000005_0F20.JPG", "000005_1F60.JPG"),
          6: ("000006_0F21.JPG", "000006_1F61.JPG")}  # fmt: skip


def subjects_of(folder):
    return {int(name) for name in os.listdir(folder)}


def test_the_youngest_picture_goes_to_the_gallery_and_the_oldest_to_the_probe(morph2, tmp_path):
    (plan,) = plan_morph2(*morph2, counts=(2, 5))
    written = write_plan(plan, tmp_path / "out")
    benchmark = BENCHMARKS["morph2"]
    assert written.counts == {folder: (2 if "3000" in folder else 5,) * 2 for folder in benchmark.folders}
    pattern = FILENAME_PATTERNS[benchmark.pattern]
    for folder in benchmark.folders:
        faces = index_identity_folders(tmp_path / "out" / folder, pattern)
        assert faces.num_identities == len(faces) == (2 if "3000" in folder else 5)
        for i in range(len(faces)):
            name = CHOICE[int(faces.identity_names[faces.identities[i]])]["probe" in folder]
            assert faces.name(i).endswith(f"/{name}") and len(faces.name(i).split("/")[0]) == 6
            assert_aligned(faces.path(i))
    sets = {folder: subjects_of(tmp_path / "out" / folder) for folder in benchmark.folders}
    small, large = sets[benchmark.folders[0]], sets[benchmark.folders[2]]
    assert small < large == set(CHOICE)
    assert sets[benchmark.folders[1]] == small and sets[benchmark.folders[3]] == large


def test_the_draw_depends_on_the_seed_alone():
    pictures = {k: [Morph2Picture(k, n, 20 + n, f"{k}_{n}", "") for n in (0, 1)] for k in range(1, 101)}

    def drawn(seed):
        return [subject.number for subject in draw_subjects(pictures, (10, 30), seed)]

    before = drawn(7)
    assert before == drawn(7) != drawn(8)
    # Each subject is drawn about as often, and more pictures of one change nothing for the others.
    often = np.bincount(np.concatenate([drawn(seed) for seed in range(200)]), minlength=101)[1:]
    assert often.sum() == 6000 and often.min() > 35 and often.max() < 85
    pictures[101] = pictures[1]
    assert len(set(before) - set(drawn(7))) <= 1


def test_the_choice_among_two_hundred_random_subjects_is_what_sorting_by_hand_gives():
    random = np.random.default_rng(0)
    for _ in range(200):
        numbers = random.permutation(20)[: random.integers(2, 7)]
        pictures = [Morph2Picture(1, int(n), int(random.integers(20, 24)), "", "") for n in numbers]
        young, old = youngest_and_oldest(pictures)
        assert young is sorted(sorted(pictures, key=lambda p: p.number), key=lambda p: p.age)[0]
        others = sorted((p for p in pictures if p is not young), key=lambda p: p.number)
        assert old is sorted(others, key=lambda p: p.age, reverse=True)[0]
        assert old.age >= young.age


def test_the_training_remainder_has_all_other_subjects_and_published_names(morph2, tmp_path):
    plan, training = plan_morph2(*morph2, counts=(1, 3), training_folder="morph2_rest")
    write_plan(plan, tmp_path / "out")
    written = write_plan(training, tmp_path / "out")
    tested = subjects_of(tmp_path / "out" / BENCHMARKS["morph2"].folders[2])
    faces = index_identity_folders(written.folder, FILENAME_PATTERNS["ms1mv3"])
    assert {int(name) for name in faces.identity_names} == {1, 2, 3, 4, 5, 6} - tested
    with open(written.folder / "names.csv", newline="") as file:
        originals = {row["name"]: row["original"] for row in csv.DictReader(file)}
    for i in range(len(faces)):
        assert_aligned(faces.path(i))
        original = originals[faces.name(i)]
        assert int(original.split("_")[0].split("/")[-1]) == int(faces.name(i).split("/")[0])
        assert int(original[:-4].replace("M", "F").split("F")[-1]) == faces.ages[i]
    assert written.counts == {"morph2_rest": (len(faces), 3)} and len(originals) == len(faces)
    refused(lambda: plan_morph2(*morph2, counts=(1, 3), training_folder="../x"), "--training-folder '../x'")


def test_others_get_the_same_split_from_the_list(morph2, tmp_path):
    (first,) = plan_morph2(*morph2, counts=(2, 4), seed=5)
    folder = write_plan(first, tmp_path / "first").folder
    # Pictures of no subject in the list need no landmarks then.
    kept = subjects_of(folder / "gallery_10000")
    with open(morph2[1], newline="") as file:
        points = {row["path"]: [[float(row[f"{axis}{k}"]) for axis in "xy"] for k in range(1, 6)]
                  for row in csv.DictReader(file) if int(row["path"].split("/")[-1].split("_")[0]) in kept}  # fmt: skip
    (tmp_path / "points.json").write_text(json.dumps(points))
    (again,) = plan_morph2(morph2[0], tmp_path / "points.json", subjects=folder / "subjects.csv")
    second = write_plan(again, tmp_path / "second").folder
    assert names_in(folder) == names_in(second)
    assert all((folder / name).read_bytes() == (second / name).read_bytes() for name in names_in(second))


def test_ages_of_the_table_count_instead_of_those_in_the_names(morph2, tmp_path):
    ages = {name: int(name[:-4].replace("F", "M").split("M")[-1]) for name in MORPH2_FILES}
    ages["000001_0M30.JPG"] = 77
    header = "id_num,picture_num,dob,doa,race,gender,facial_hair,age,age_diff,glasses,photo\n"
    rows = "".join(f"1,0,1/1/50,1/1/90,B,M,NULL,{age},0,NULL,Album2/{name}\n" for name, age in ages.items())
    (tmp_path / "morph.csv").write_text(header + rows)
    (plan,) = plan_morph2(*morph2, ages=tmp_path / "morph.csv", counts=(5, 5))
    assert "probe_3000/000001/000001_0M77.JPG" in {target for face in plan.faces for target in face.targets}
    assert plan.notes == ["1 pictures have another age in the table than in their names; the table's counts and "
                          "stands in the new names"]  # fmt: skip
    (tmp_path / "morph.csv").write_text(header + rows.replace("Album2/000004_0M33.JPG", "Album2/000004_0M34.JPG"))
    (plan,) = plan_morph2(*morph2, ages=tmp_path / "morph.csv", counts=(5, 5))
    assert [name for name, _ in plan.left_out] == ["Album2/0/000004_0M33.JPG"]


@pytest.fixture
def contradicting(morph2, tmp_path):
    """MORPH2's release with a table in which subject 3 has two birth dates and subject 5 two races; the days of the
    pictures agree with their ages, but for subject 6."""
    rows = []
    for name in MORPH2_FILES:
        subject, age = int(name.split("_")[0]), int(name[:-4].replace("F", "M").split("M")[-1])
        born = "02/01/1941" if name == "000003_4M50.JPG" else "2/1/40 0:00"
        race = "W" if name == "000005_1F60.JPG" else "B"
        day = "" if subject == 3 else f"3/1/{1940 + (99 - age if subject == 6 else age)}"
        rows.append(f"Album2/{name},{age},{born},{day},{race},{'F' if 'F' in name else 'M'}\n")
    (tmp_path / "morph.csv").write_text("photo,age,dob,doa,race,gender\n" + "".join(rows))
    return (*morph2, tmp_path / "morph.csv")


def plan_of(contradicting, **settings):
    raw, landmarks, table = contradicting
    (plan,) = plan_morph2(raw, landmarks, ages=table, **{"counts": (1, 2)} | settings)
    return plan


def test_contradictions_within_a_subject_are_counted_and_listed_and_kept_as_published(contradicting, tmp_path):
    plan = plan_of(contradicting, counts=(2, 5))
    (note,) = plan.notes
    assert note == (
        "3 subjects contradict themselves (birth date 1, race 1, age runs backwards 1), listed in "
        "ID_processed_morph2_2/contradictions.csv; they are taken as published, --contradictions drop leaves them out"
    )
    folder = write_plan(plan, tmp_path / "out").folder
    assert (folder / "contradictions.csv").read_text() == (
        "subject,what,pictures\n"
        "000003,birth date,1941-02-01 in 000003_4M50.JPG; 1940-02-01 in 000003_5M50.JPG\n"
        "000005,race,B in 000005_0F20.JPG; W in 000005_1F60.JPG\n"
        '000006,age runs backwards,"61 in 000006_1F61.JPG, then 21 in 000006_0F21.JPG, on 1978-03-01 and 2018-03-01"\n'
    )
    assert len(read_contradictions(folder / "contradictions.csv")) == 3 and subjects_of(folder / "probe_10000") > {3, 5}


def test_subjects_that_contradict_themselves_are_left_out_or_an_error_where_asked(contradicting, tmp_path):
    plan = plan_of(contradicting, contradictions="drop")
    assert "left out with their 7 pictures" in plan.notes[0] and not plan.left_out
    folder = write_plan(plan, tmp_path / "out").folder
    assert subjects_of(folder / "probe_10000") == {1, 2}
    refused(lambda: plan_of(contradicting, contradictions="error"), "3 subjects contradict themselves", "000003",
            "give --contradictions keep")  # fmt: skip
    refused(lambda: plan_of(contradicting, contradictions="drop", counts=(2, 3)), "2 of 3 subjects have two pictures")
    kept = write_plan(plan_of(contradicting, counts=(2, 5)), tmp_path / "kept").folder
    again = plan_of(contradicting, contradictions="drop", subjects=kept / "subjects.csv")
    assert {target.split("/")[1] for face in again.faces for target in face.targets} == {"000001", "000002"}
    assert not again.left_out


def test_without_a_table_names_alone_contradict_each_other(morph2):
    (plan,) = plan_morph2(*morph2, counts=(2, 5))
    (found,) = find_contradictions(described_by_name(name) for name in MORPH2_FILES)
    assert found == (1, "age runs backwards", "30 in 000001_0M30.JPG, then 22 in 000001_1M22.JPG, by their numbers")
    assert plan.notes[0].startswith("1 subjects contradict themselves (age runs backwards 1)")
    of_two = [described_by_name(name) for name in ("000009_0M30.JPG", "000009_1F31.JPG")]
    assert find_contradictions(of_two) == [(9, "sex", "M in 000009_0M30.JPG; F in 000009_1F31.JPG")]
    assert described_by_name("009055.JPG") is None


@pytest.mark.parametrize("text, day", [
    ("4/24/1951", "1951-04-24"), ("04/24/51", "1951-04-24"), ("1/2/07 0:00", "2007-01-02"),
    ("1951-4-24T00:00", "1951-04-24"), ("24/4/1951", "None"), ("NULL", "None"), ("", "None"),
])  # fmt: skip
def test_days_of_morphs_table_are_read(text, day):
    assert str(parse_date(text)) == day


@pytest.mark.parametrize("text, words", [
    ("a,b\n1,2\n", "line 1, has the column 'photo' 0 times"),
    ("photo,age\n", "holds no pictures"), ("photo,age\nx.JPG,-1\n", "line 2, reads 'x.JPG,-1'"),
    ("photo,age\nx.JPG,121\n", "line 2"), ("photo,age\nx.JPG\n", "line 2"),
    ("photo,age\nx.JPG,5\nb/x.jpg,6\n", "line 3, gives 'x.jpg' the age 6, and a line before 5"),
])  # fmt: skip
def test_a_table_of_ages_that_is_wrong_is_refused_with_its_line(tmp_path, text, words):
    (tmp_path / "ages.csv").write_text(text)
    refused(lambda: read_morph2_table(tmp_path / "ages.csv"), "ages.csv", words)


@pytest.mark.parametrize("text, words", [
    ("subject,gallery\n", "line 1, has the column 'probe' 0 times"),
    ("subject,gallery,probe,setting\n", "is empty"),
    ("subject,gallery,probe,setting\n1,a,b,30\n", "line 2, reads '1,a,b,30'"),
    ("subject,gallery,probe,setting\n1,../a,b,3000\n", "line 2"),
    ("subject,gallery,probe,setting\n1,a,a,3000\n", "line 2"),
    ("subject,gallery,probe,setting\n1,a,b,3000\n01,c,d,3000\n", "line 3, has the subject 1 again"),
])  # fmt: skip
def test_a_list_of_subjects_that_is_wrong_is_refused_with_its_line(tmp_path, text, words):
    (tmp_path / "subjects.csv").write_text(text)
    refused(lambda: read_subjects(tmp_path / "subjects.csv", (3000, 10000)), "subjects.csv", words)


def test_more_subjects_than_there_are_is_refused_with_their_number(morph2):
    refused(lambda: plan_morph2(*morph2), "5 of 6 subjects have two pictures", "3,000 and 10,000", "--counts")
    refused(lambda: plan_morph2(*morph2, counts=(4, 3)), "the smaller one first")


@pytest.mark.parametrize("per_fold, space, newline", [(1, " ", "\n"), (3, "\t", "\r\n")])
def test_calfws_list_is_dealt_into_ten_folds_of_genuine_then_impostor_pairs(tmp_path, per_fold, space, newline):
    lines = calfw_text(per_fold, space).splitlines()
    for order in (range(10 * per_fold), np.random.default_rng(0).permutation(10 * per_fold)):  # of genuine pairs
        shuffled = [line for k in order for line in lines[2 * k : 2 * k + 2]] + lines[20 * per_fold :]
        (tmp_path / "pairs.txt").write_bytes(newline.join(shuffled).encode())
        pairs = read_calfw_pairs(tmp_path / "pairs.txt")
        assert len(pairs) == 20 * per_fold
        for fold in range(10):
            mine = pairs[2 * per_fold * fold : 2 * per_fold * (fold + 1)]
            assert [pair.genuine for pair in mine] == [True] * per_fold + [False] * per_fold
            names = [f"A_{k}_0001.jpg" for k in range(per_fold * fold, per_fold * (fold + 1))]
            assert {pair.name_a for pair in mine[:per_fold]} == set(names)
            assert [pair.name_a for pair in mine[per_fold:]] == names


@pytest.mark.parametrize("text, words", [
    ("", "0 to 0 genuine pairs"),
    (CALFW + "A_0_0001.jpg 0\n", "41 lines, an odd number"),
    (CALFW + "A_0_0001.jpg 0\nA_1_0001.jpg 0\n", "1 to 1 genuine pairs in a fold and 11 impostor pairs"),
    (CALFW.replace("jpg 3", "jpg 2"), "0 to 2 genuine pairs in a fold"),
    (CALFW.replace("A_0_0001.jpg 1\n", "A_0_0001.jpg 11\n"), "line 1, reads 'A_0_0001.jpg 11'"),
    (CALFW.replace("A_0_0001.jpg 1\n", "A_0_0001.jpg 2\n"), "lines 1 and 2, are 'A_0_0001.jpg' with tag 2"),
    (CALFW.replace("A_0_0001.jpg 1\n", "B_0_0001.jpg 1\n"), "contradict each other"),
    ("\n" + CALFW.replace("A_1_0003.jpg 0", "A_0_0003.jpg 0"), "lines 22 and 23"),
    (CALFW.replace("A_0_0001.jpg", "../A_0_0001.jpg"), "line 1, reads '../A_0_0001.jpg 1'"),
    (CALFW.replace("A_0_0001.jpg", "/etc/passwd"), "line 1"),
    (CALFW.replace("A_0_0001.jpg 1", "A_0_0001.jpg"), "line 1"),
])  # fmt: skip
def test_a_list_of_calfws_that_is_wrong_is_refused_with_its_place(tmp_path, text, words):
    (tmp_path / "pairs.txt").write_text(text)
    refused(lambda: read_calfw_pairs(tmp_path / "pairs.txt"), "pairs.txt", words)


def test_calfw_becomes_its_benchmark_from_the_pictures_beside_the_landmarks(tmp_path):
    raw = tmp_path / "raw"
    inner = raw / "images&landmarks" / "images&landmarks"  # as its archive unpacks
    for seed, name in enumerate(sorted({line.split()[0] for line in CALFW.splitlines()} | {"B_0001.jpg"})):
        points = draw(inner / "images" / name, seed)
        (inner / "CA_landmarks").mkdir(exist_ok=True)
        text = "".join(f"{x:.4f} {y:.4f}\n" for x, y in points)
        (inner / "CA_landmarks" / f"{name[:-4]}_5loc_attri.txt").write_text(text)
        draw(raw / "aligned images" / name, 70)  # not to be taken
    (raw / "pairs_CALFW.txt").write_text(CALFW)
    plan = plan_calfw(raw)
    assert plan.notes == ["1 pictures of the release are in no pair and are not taken"]
    written = write_plan(plan, tmp_path / "out")
    benchmark = BENCHMARKS["calfw"]
    assert written.counts == {benchmark.folders[0]: (30, 0)}
    pairs = read_pair_list(find_pair_list(tmp_path / "out", benchmark), tmp_path / "out" / benchmark.folders[0])
    assert (len(pairs), pairs.missing) == (20, ()) and pairs.genuine.tolist() == [True, False] * 10
    for i in range(len(pairs.images)):
        assert_aligned(pairs.images.path(i))


def test_cacd_vs_gets_its_list_by_the_rule_and_names_what_is_missing(tmp_path):
    names = [f"{number:04d}_{side}.jpg" for number in (0, 1, 200, 3999) for side in (0, 1)]
    points = draw_all(tmp_path / "raw", names)
    (tmp_path / "raw" / "0001_1.jpg").rename(tmp_path / "raw" / "0001_1.JPG")
    points["0001_1.JPG"] = points.pop("0001_1.jpg")
    plan = plan_cacd_vs(tmp_path / "raw", write_csv(tmp_path / "points.csv", points))
    refused(lambda: write_plan(plan, tmp_path / "out"), "7,992 pictures of CACD-VS", "no picture has this name")
    written = write_plan(plan, tmp_path / "out", allow_missing=True)
    benchmark = BENCHMARKS["cacd_vs"]
    folder = tmp_path / "out" / benchmark.folders[0]
    assert written.counts == {benchmark.folders[0]: (8, 0)} and names_in(folder) == sorted(names)
    pairs = read_pair_list(find_pair_list(tmp_path / "out", benchmark), folder, allow_missing=True)
    assert pairs.genuine.tolist() == [True, True, False, False] and pairs.num_pairs_dropped == 3996
    for i in range(len(pairs.images)):
        assert_aligned(pairs.images.path(i))


AGEDB_FILES = tuple(f"{number}_{'ABCDEFGHIJ'[number // 2]}nna_{20 + 35 * (number % 2)}_f.jpg" for number in range(20))


def agedb_pairs():
    genuine = [(AGEDB_FILES[2 * k], AGEDB_FILES[2 * k + 1], 1) for k in range(10)]
    impostor = [(AGEDB_FILES[2 * k], AGEDB_FILES[(2 * k + 3) % 20], 0) for k in range(10)]
    return [pair for two in zip(genuine, impostor, strict=True) for pair in two]


def mat_bytes(pairs, compressed, folds=10):
    """The official protocol's structure: cells of structs of cells of structs."""
    from scipy.io import savemat

    splits = np.empty((folds, 1), object)
    size = len(pairs) // folds
    for k in range(folds):
        mine = pairs[size * k : size * (k + 1)]
        names = np.empty((2, size), object)
        for column, (a, b, _) in enumerate(mine):
            names[0, column], names[1, column] = ({"path": name[:-4], "age": 50.0} for name in (a, b))
        labels = np.array([[1 if genuine else -1 for _, _, genuine in mine]], np.int16)
        splits[k, 0] = {"pairs": names, "labels": labels}
    buffer = io.BytesIO()
    savemat(buffer, {"splits": splits, "other": np.zeros(3)}, do_compression=compressed)
    return buffer.getvalue()


@pytest.fixture
def agedb(tmp_path):
    raw = tmp_path / "raw"
    for seed, name in enumerate(AGEDB_FILES):
        points = draw(raw / "03_Protocol_Images" / name, seed)
        write_pts(raw / "03_Protocol_Images" / f"{name[:-4]}.pts", points, "ibug")
    return raw


@pytest.mark.parametrize("form", ["text", "mat", "compressed mat"])
def test_agedbs_protocol_is_read_from_the_official_file_or_from_text(agedb, tmp_path, form):
    pairs = None
    if form == "text":
        pairs = tmp_path / "pairs.txt"
        pairs.write_text("".join(f"{a} {b} {genuine}\n" for a, b, genuine in agedb_pairs()))
    else:
        (agedb / "04_FINAL_protocol_30_years.mat").write_bytes(mat_bytes(agedb_pairs(), form != "mat"))
    (plan,) = plan_agedb(agedb, pairs=pairs)
    folder = write_plan(plan, tmp_path / "out").folder
    found = read_pair_list(folder / "txts" / "AgeDB_30_img_pairs_labels.txt", folder / "processed_AgeDB")
    reply = [(found.images.name(a), found.images.name(b), int(same))
            for a, b, same in zip(found.first, found.second, found.genuine, strict=True)]  # fmt: skip
    assert reply == agedb_pairs()
    for i in range(len(found.images)):
        assert_aligned(found.images.path(i))


def test_agedb_becomes_a_training_set_with_published_names(agedb, tmp_path):
    (plan,) = plan_agedb(agedb, training_folder="AgeDB_with_age")
    faces = index_identity_folders(write_plan(plan, tmp_path / "out").folder, FILENAME_PATTERNS["ms1mv3"])
    assert len(faces) == 20 and faces.identity_names == tuple(f"{letter}nna" for letter in "ABCDEFGHIJ")
    assert faces.ages.tolist() == [20, 55] * 10
    refused(lambda: plan_agedb(agedb), "04_FINAL_protocol_30_years.mat", "--pairs", "--training-folder")


def test_cacd_becomes_a_training_set_with_published_names(tmp_path):
    names = ["53_Robin_Williams_0001.jpg", "14_Jos\xe9_de_la_Cruz_0002.jpg", "62_Robin_Williams_0010.jpg"]
    points = draw_all(tmp_path / "raw", [*names, "53_.hidden_0001.jpg", "999_Old_0001.jpg", "Robin_0001.jpg"])
    plan = plan_cacd(tmp_path / "raw", write_csv(tmp_path / "points.csv", points))
    assert sorted(name for name, _ in plan.left_out) == ["53_.hidden_0001.jpg", "999_Old_0001.jpg", "Robin_0001.jpg"]
    written = write_plan(plan, tmp_path / "out", allow_missing=True)
    faces = index_identity_folders(written.folder, FILENAME_PATTERNS["ms1mv3"])
    assert faces.identity_names == ("Jos\xe9_de_la_Cruz", "Robin_Williams") and faces.ages.tolist() == [14, 53, 62]
    text = (written.folder / "names.csv").read_text(encoding="utf-8")
    assert "Robin_Williams/00000001_age_53.jpg,53_Robin_Williams_0001.jpg\n" in text


@pytest.mark.parametrize("text, words", [
    ("", "has 0 pairs"),
    ("a.jpg b.jpg 1\n" * 20, "has 20 pairs, in tenths of which [2, 2,"),
    ("a.jpg b.jpg 1\na.jpg c.jpg 0\n" * 11, "has 22 pairs"),
    ("a.jpg b.jpg 1\na.jpg c.jpg -1\n" * 10, "line 2, reads 'a.jpg c.jpg -1'"),
    ("../a.jpg b.jpg 1\na.jpg c.jpg 0\n" * 10, "line 1"),
    ("/a.jpg b.jpg 1\na.jpg c.jpg 0\n" * 10, "line 1"),
    ("a.jpg b.jpg\n", "line 1"),
])  # fmt: skip
def test_a_text_protocol_that_is_wrong_is_refused(tmp_path, text, words):
    (tmp_path / "pairs.txt").write_text(text)
    refused(lambda: read_agedb_pairs(tmp_path / "pairs.txt"), "pairs.txt", words)


def test_a_mat_file_that_is_no_protocol_is_refused(tmp_path, monkeypatch):
    from scipy.io import savemat

    path = tmp_path / "protocol.mat"
    refused(lambda: read_agedb_pairs(path), "protocol.mat", "cannot be read", "No such file")
    good = mat_bytes(agedb_pairs(), True)
    evil = mat_bytes([("../" + a, b, genuine) for a, b, genuine in agedb_pairs()], False)
    deep = np.zeros((1, 1))
    for _ in range(30):
        cell = np.empty((1, 1), object)
        cell[0, 0], deep = deep, cell
    savemat(path, {"splits": deep})
    refused(lambda: read_agedb_pairs(path), "cells in cells more than 16 deep")
    for content in (b"", b"MATLAB 7.3 MAT-file", good[:-200], good[:300], evil, mat_bytes(agedb_pairs()[:10], True, 5)):
        path.write_bytes(content)
        refused(lambda: read_agedb_pairs(path), "protocol.mat")
    for wrong in ({"split": 1}, {"splits": np.zeros((10, 1))}, {"splits": "text"}, {"splits": {"a": 1}}):
        savemat(path, wrong)
        refused(lambda: read_agedb_pairs(path), "protocol.mat", "'splits' with ten cells")
    # A few bytes that unpack to more than all of memory, and a file of more bytes than any protocol
    bomb = zlib.compress(bytes(1 << 20))
    monkeypatch.setattr(release_mat, "MAX_UNPACKED_BYTES", 1 << 16)
    path.write_bytes(good[:128] + (15).to_bytes(4, "little") + len(bomb).to_bytes(4, "little") + bomb)
    refused(lambda: read_agedb_pairs(path), "protocol.mat", "unpacks to more than 65,536 bytes")
    monkeypatch.setattr(release_mat, "MAX_BYTES", 100)
    refused(lambda: read_agedb_pairs(path), "protocol.mat", "more than 100 bytes")
