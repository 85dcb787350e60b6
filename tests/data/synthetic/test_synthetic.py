"""Claims about the drawn faces: they are reproducible, age smoothly, confound age with looks, filed as published."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.synthetic import sets as synthetic
from data.synthetic.drawing import draw_face, encode_jpeg
from data.synthetic.people import Shot, random_stream, sample_person, sample_shot
from meta import age_group


def files_in(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def nearest_other(pictures: np.ndarray) -> np.ndarray:
    """Index of the most similar other picture by cosine of pixels, (N,)."""
    rows = pictures.reshape(len(pictures), -1).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -1)
    return similarity.argmax(1)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Path:
    """A small edition of all sets."""
    root = tmp_path_factory.mktemp("synthetic") / "faces"
    sizes = {"num_people": 2, "pictures_per_person": 2, "fgnet_people": 5, "fgnet_pictures_per_person": 6,
             "morph2_subjects": (4, 7), "cacd_vs_pairs": 20, "calfw_pairs": 40}  # fmt: skip
    counts = synthetic.write_all(root, **sizes, progress=False)
    assert counts == {folder.name: sum(path.suffix.lower() == ".jpg" for path in folder.rglob("*"))
                      for folder in root.iterdir()}  # fmt: skip
    return root


def test_same_seed_same_bytes_whatever_the_number_of_workers(tmp_path):
    for name, workers, seed in (("one", 1, 5), ("again", 1, 5), ("two", 2, 5), ("other", 1, 6)):
        synthetic.write_training_set(tmp_path / name, 3, 2, seed=seed, workers=workers, progress=False)
    one = files_in(tmp_path / "one")
    assert len(one) == 6 and not set(one.values()) & set(files_in(tmp_path / "other").values())
    assert one == files_in(tmp_path / "again") == files_in(tmp_path / "two")


def test_a_picture_does_not_depend_on_the_others(tmp_path):
    synthetic.write_training_set(tmp_path / "both", 2, 3, seed=5, progress=False)
    synthetic.write_training_set(tmp_path / "second", 1, 3, seed=5, first_person=1, progress=False)
    assert list(files_in(tmp_path / "both").values())[3:] == list(files_in(tmp_path / "second").values())


def test_pictures_may_lie_within_some_years_of_a_life_anywhere_in_it(tmp_path):
    synthetic.write_training_set(tmp_path / "set", 20, 3, seed=5, progress=False, years_per_person=7)
    ages = [sorted(int(path.stem[-2:]) for path in person.iterdir()) for person in (tmp_path / "set").iterdir()]
    assert all(own[-1] - own[0] < 7 for own in ages)
    assert min(own[0] for own in ages) < 15 and max(own[-1] for own in ages) > 65


@pytest.mark.parametrize("size", [64, 112])
def test_faces_are_8_bit_pictures_of_the_size_asked_for(size):
    for index, age in enumerate((0, 17.5, 80)):
        for strength in (0.0, 1.0, 2.0):
            shot = sample_shot(random_stream(2, index), strength)
            assert (shot == Shot()) == (strength == 0)
            face = draw_face(sample_person(2, index), age, shot, size)
            assert face.shape == (size, size, 3) and face.dtype == np.uint8
            assert 20 < face.mean() < 235 and face.std() > 10


@pytest.mark.parametrize("index", range(2))
def test_small_steps_of_age_change_pictures_little(index):
    person = sample_person(4, index)

    def steps(ages: np.ndarray) -> np.ndarray:
        faces = np.stack([draw_face(person, age, Shot()) for age in ages]).astype(np.float32)
        return np.abs(np.diff(faces, axis=0)).mean(axis=(1, 2, 3))  # 8-bit steps a pixel

    half_years = steps(np.arange(0, 80.01, 0.5))
    assert half_years.max() < 8
    assert half_years[40:].max() < 2.5  # an adult changes slowly
    # A jump would stay as large however finely it is looked at
    worst = 0.5 * int(half_years.argmax())
    assert steps(np.linspace(worst, worst + 0.5, 17)).max() < 0.4 * half_years.max()
    first, last = draw_face(person, 2, Shot()), draw_face(person, 80, Shot())
    assert np.abs(np.float32(first) - last).mean() > 10


def test_sizes_show_the_same_picture():
    person, shot = sample_person(2, 0), Shot()
    large = Image.fromarray(draw_face(person, 40, shot, 224)).resize((112, 112), Image.Resampling.BOX)
    assert np.abs(np.float32(large) - draw_face(person, 40, shot)).mean() < 4


def test_jpeg_files_can_be_read_back():
    face = draw_face(sample_person(0, 0), 30, Shot())
    picture = Image.open(io.BytesIO(encode_jpeg(face, 95)))
    assert picture.format == "JPEG" and picture.size == (112, 112)
    assert np.abs(np.float32(picture) - face).mean() < 4


def test_stronger_nuisance_differs_more_from_the_neutral_picture():
    differences = []
    for strength in (0.2, 1.0):
        total = 0.0
        for index in range(12):
            person = sample_person(3, index)
            shot = sample_shot(random_stream(9, index), strength)
            total += np.abs(np.float32(draw_face(person, 30, shot)) - draw_face(person, 30, Shot())).mean()
        differences.append(total)
    assert differences[1] > 2 * differences[0]


def test_a_negative_strength_and_an_age_beyond_the_path_are_refused():
    with pytest.raises(ValueError, match="strength is -1"):
        sample_shot(random_stream(0), -1)
    with pytest.raises(ValueError, match="age is 81"):
        draw_face(sample_person(0, 0), 81, Shot())


def test_age_confounds_looks():
    """By raw pixels the nearest other picture shares the age group more often than the person."""
    ages = (3, 15, 22, 30, 40, 50, 60, 75)  # one in each group
    pictures, people, groups = [], [], []
    for index in range(25):
        person = sample_person(0, 10**6 + index)
        for number, age in enumerate(ages):
            face = draw_face(person, age, sample_shot(random_stream(0, index, number)))
            pictures.append(np.float32(face) @ np.float32([0.299, 0.587, 0.114]))
            people.append(index)
            groups.append(age_group(age))
    nearest = nearest_other(np.stack(pictures))
    people, groups = np.array(people), np.array(groups)
    same_person, same_group = (people[nearest] == people).mean(), (groups[nearest] == groups).mean()
    assert same_group > 1.3 * same_person
    assert same_group > 2 / 8


def test_a_person_is_more_like_themselves_than_like_others():
    """In neutral shots at nearby ages a person is found again by pixels alone: identity shows."""
    faces = np.stack([draw_face(sample_person(0, index), age, Shot()) for index in range(25) for age in (28, 34)])
    nearest = nearest_other(faces - faces.mean(0))
    assert (nearest == (np.arange(50) ^ 1)).mean() > 0.95


def test_fgnet_layout(everything):
    files = list(files_in(everything / "ID_processed_FGNET"))
    matches = [re.fullmatch(r"(\d{3})/(\d{3})A(\d\d)([ab]?)\.JPG", name) for name in files]
    assert all(match and match[1] == match[2] for match in matches)
    counts = [sum(match[1] == folder for match in matches) for folder in ("001", "002", "003", "004", "005")]
    assert min(counts) >= 2 and len(set(counts)) > 1
    # The age as the published scripts read it
    assert [int(re.split(r"A|\.|a|b", Path(name).name)[1]) for name in files] == [int(match[3]) for match in matches]


def test_fgnet_pictures_of_one_age_get_letters(tmp_path):
    synthetic.write_fgnet(tmp_path / "fgnet", 2, 30, seed=0, nuisance=0.0, progress=False)
    names = [Path(name).stem for name in files_in(tmp_path / "fgnet")]
    for name in names:
        if name.endswith("a"):
            assert name[:-1] + "b" in names and name[:-1] not in names
    assert any(name.endswith("b") for name in names)


def test_morph2_layout(everything):
    root = everything / "ID_processed_morph2_2"
    subjects = {}
    for setting, count in (("3000", 4), ("10000", 7)):
        ages = {}
        for part in ("gallery", "probe"):
            files = list(files_in(root / f"{part}_{setting}"))
            matches = [re.fullmatch(r"(\d{6})/\1_\d([MF])(\d\d)\.JPG", name) for name in files]
            assert all(matches) and len(files) == count
            ages[part] = {match[1]: (match[2], int(match[3])) for match in matches}
        assert ages["gallery"].keys() == ages["probe"].keys()
        for subject, (sex, youngest) in ages["gallery"].items():
            assert ages["probe"][subject][0] == sex and youngest < ages["probe"][subject][1] <= 77
        subjects[setting] = set(ages["gallery"])
    assert subjects["3000"] < subjects["10000"]
    large = files_in(root / "probe_10000")
    assert all(large[name] == content for name, content in files_in(root / "probe_3000").items())


@pytest.mark.parametrize(("images", "labels", "num_pairs", "name"), [
    ("CACD_VS/processed_CACDVS_2", "CACD_VS/txt/CACD_VS_pairs_labels.txt", 20, r"\d{4}_[01]\.jpg"),
    ("CALFW/processed_CALFW_2", "CALFW/txts/CALFW_img_pairs_labels.txt", 40, r"P\d{4}_\d{4}\.jpg"),
])  # fmt: skip
def test_pair_lists_have_ten_folds_and_no_missing_file(everything, images, labels, num_pairs, name):
    rows = [line.split(" ") for line in (everything / labels).read_text().splitlines()]
    half = num_pairs // 20
    assert [int(row[2]) for row in rows] == ([1] * half + [0] * half) * 10
    mentioned = [file for row in rows for file in row[:2]]
    assert len(set(mentioned)) == 2 * num_pairs
    assert all(re.fullmatch(name, file) for file in mentioned)
    assert {path.name for path in (everything / images).iterdir()} == set(mentioned)


def test_pairs_are_genuine_or_not_as_labelled_and_folds_share_nobody():
    rows = synthetic.ten_folds(60, seed=0, first_person=0)
    assert all((a == b) == genuine for a, b, genuine in rows)
    folds = [{person for row in rows[6 * k : 6 * k + 6] for person in row[:2]} for k in range(10)]
    assert sum(len(fold) for fold in folds) == len(set().union(*folds))


def test_no_two_sets_share_a_person(tmp_path, monkeypatch):
    people = {}

    def note(pictures, workers, title, progress):
        people[title] = {picture.person for picture in pictures}
        return 0

    monkeypatch.setattr(synthetic, "write_pictures", note)
    synthetic.write_all(tmp_path / "demo")
    assert len(people) == 5 and len(people["training set"]) == 100 and len(people["FG-NET"]) == 40
    assert sum(map(len, people.values())) == len(set().union(*people.values()))
    drawn = {sample_person(0, index).skin for group in people.values() for index in sorted(group)[:10]}
    assert len(drawn) == 50


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match=r"mine already exists and is not empty"):
        synthetic.write_all(tmp_path / "mine")
    assert files_in(tmp_path) == {"mine/thesis.txt": b"all of it"}


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def interrupted(picture):
        drawn.append(picture)
        if len(drawn) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "write_picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_all(tmp_path / "demo", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("write", "arguments", "message"), [
    (synthetic.write_training_set, {"num_people": 0, "pictures_per_person": 3}, "num_people is 0"),
    (synthetic.write_training_set, {"num_people": 1, "pictures_per_person": 1, "years_per_person": 82},
     "years_per_person is 82"),
    (synthetic.write_fgnet, {"num_people": 3, "pictures_per_person": 1}, "pictures_per_person is 1"),
    (synthetic.write_morph2, {"num_subjects_small": 5, "num_subjects_large": 4}, "num_subjects_large is 4"),
    (synthetic.write_cacd_vs, {"num_pairs": 30}, "num_pairs is 30"),
    (synthetic.write_calfw, {"num_pairs": 20, "workers": 0}, "workers is 0"),
])  # fmt: skip
def test_impossible_counts_are_refused(tmp_path, write, arguments, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "set", seed=0, **arguments)
    assert list(tmp_path.iterdir()) == []
