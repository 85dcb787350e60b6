"""Pictures with ages of people whom nobody names (data/benchmarks.py): listed by name, each file once."""

import pytest

from data.benchmarks import OWN_AGES, open_eval_set, specs_of_folders
from meta import UserError


def write(folder, **contents):
    """Files of these contents; "__" in a name stands for a folder."""
    for name, content in contents.items():
        path = folder / f"{name.replace('__', '/')}.jpg.chip.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def opened(folder, pattern="utkface"):
    said = []
    (spec,) = specs_of_folders((folder,), pattern, benchmark=OWN_AGES)
    return open_eval_set(spec, said.append), said


def test_pictures_anywhere_below_are_listed_with_their_ages_and_each_file_once(tmp_path):
    ages = {"3_1_0_2017": "a", "34_1_0_2017": "b", "part2__60_0_2017": "c", "121_0_0_2017": "an impossible age"}
    folder = write(tmp_path / "UTK", **ages, part2__61_0_1_2018="b", part2__none="no age")
    benchmark, said = opened(folder)
    ((faces, title),) = benchmark.sides
    assert (title, benchmark.protocol) == ("UTK", "all_impostors")
    assert [benchmark.name(faces, i) for i in range(len(faces))] == [
        "34_1_0_2017.jpg.chip.jpg", "3_1_0_2017.jpg.chip.jpg", "part2/60_0_2017.jpg.chip.jpg"
    ]  # fmt: skip
    assert faces.ages.tolist() == [34, 3, 60] and set(faces.identities) == {-1}
    assert benchmark.left_out == {"num_without_age_left_out": 2, "num_duplicates_left_out": 1}
    left_out = "2 without an age in the name, 1 exact duplicates"
    assert said == [f"UTK: 3 pictures of ages 3 to 60; left out: {left_out}; every pair counts as two people"]


def test_folders_go_by_the_last_part_of_their_paths(tmp_path):
    specs = specs_of_folders((tmp_path / "a" / "UTK", tmp_path / "b" / "UTK", tmp_path / "fgnet"), "utkface",
                             benchmark=OWN_AGES)  # fmt: skip
    assert [spec.name for spec in specs] == ["a/UTK", "b/UTK", f"{tmp_path.name}/fgnet"]


@pytest.mark.parametrize(
    ("names", "pattern", "words"),
    [
        (["34_1_0_2017", "3_1_0_2017"], "fgnet", "hold no ages as the pattern 'fgnet' reads them"),
        (["34_1_0_2017", "3_1_4_2017"], "ms1mv3", "hold ages 0-12 only as the pattern 'ms1mv3' reads them"),  # the race
        (["34_1_0_2017"], "utkface", "hold ages 26-35 only"),
        ([], "utkface", "holds no picture"),
    ],
)
def test_names_that_hold_nothing_to_compare_are_one_sentence(tmp_path, names, pattern, words):
    folder = write(tmp_path, **{name: name for name in names})
    with pytest.raises(UserError, match=words) as refused:
        opened(folder, pattern)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="of pictures with ages does not exist: check its path"):
        opened(tmp_path / "nowhere")
