"""data/filenames.py: ages out of published and hostile file names."""

import pytest
from refusals import refused

from data.filenames import parse_age
from meta import FILENAME_PATTERNS, UserError


@pytest.mark.parametrize(("pattern", "path", "age"), [
    ("ms1mv3", "05179510_age_39.jpg", 39), ("ms1mv3", "05179510_age_0.jpg", 0), ("ms1mv3", "0_age_120.png", 120),
    ("fgnet", "001A02.JPG", 2), ("fgnet", "001A43a.JPG", 43), ("fgnet", "001a02.jpg", 2), ("fgnet", "082A00.jpg", 0),
    ("morph2", "009055_1M54.JPG", 54), ("morph2", "00013_00M19.JPG", 19), ("morph2", "316837_3F43.JPG", 43),
    ("utkface", "34_1_0_20170109004755204.jpg.chip.jpg", 34), ("utkface", "100_0_0_20170112213500903.jpg", 100),
    ("utkface", "61_1_20170109150557335.jpg.chip.jpg", 61),  # some names lack a part
    # Folders of the path are not looked at.
    ("ms1mv3", "/data/my_age_99.set/7_age_8.d/05179510_age_39.jpg", 39),
    ("fgnet", "face_dataset/a.b/Anna.A77/001A02.JPG", 2), ("morph2", "/home/Maria.F/FM.31/009055_1M54.JPG", 54),
])  # fmt: skip
def test_published_names_give_their_age(pattern, path, age):
    assert parse_age(path, FILENAME_PATTERNS[pattern]) == age


NO_AGE = {
    "ms1mv3": ["05179510.jpg", "1_age_.jpg", "1_age", "1_age_39x.jpg", "1_age_-3.jpg", "1_age_+3.jpg", "1_age_3 9.jpg",
               "1_age_\u0663\u0669.jpg",  # digits, but not ours
               "1_age_\u00b2.jpg",  # str.isdigit, yet int() fails
               "folder_age_39/plain.jpg"],
    "fgnet": ["001B02.JPG", "002.JPG"],
    "morph2": ["009055_1X54.JPG", ""],
    "utkface": ["34.jpg", "_34_1_0_2017.jpg", "34_age_56.jpg", "34_MariaCallas_35_f.jpg"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "file_name"), [(name, one) for name, names in NO_AGE.items() for one in names])
def test_a_name_without_an_age_is_refused_with_file_and_pattern(name, file_name):
    pattern = FILENAME_PATTERNS[name]
    with pytest.raises(UserError, match="has no age") as caught:
        parse_age(file_name, pattern)
    assert all(part in str(caught.value) for part in (repr(file_name), repr(name), pattern.example))


@pytest.mark.parametrize(
    ("pattern", "file_name", "age"),
    [("ms1mv3", "05179510_age_121.jpg", 121), ("fgnet", "001A999.JPG", 999), ("morph2", "1_1M12345.JPG", 12345)],
)
def test_an_impossible_age_is_refused_with_its_value(pattern, file_name, age):
    refused(parse_age, file_name, FILENAME_PATTERNS[pattern], match=rf"age {age} .* outside 0 to 120.*{pattern}")
