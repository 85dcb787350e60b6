"""data/filenames.py: ages out of published and hostile file names."""

import pytest

from data.filenames import parse_age
from meta import FILENAME_PATTERNS, UserError


@pytest.mark.parametrize(
    ("pattern", "file_name", "age"),
    [
        ("ms1mv3", "05179510_age_39.jpg", 39),
        ("ms1mv3", "05179510_age_0.jpg", 0),
        ("ms1mv3", "0_age_120.png", 120),
        ("fgnet", "001A02.JPG", 2),
        ("fgnet", "001A43a.JPG", 43),
        ("fgnet", "001A43b.JPG", 43),
        ("fgnet", "001a02.jpg", 2),
        ("fgnet", "082A00.jpg", 0),
        ("morph2", "009055_1M54.JPG", 54),
        ("morph2", "00013_00M19.JPG", 19),
        ("morph2", "316837_3F43.JPG", 43),
        ("utkface", "34_1_0_20170109004755204.jpg.chip.jpg", 34),
        ("utkface", "100_0_0_20170112213500903.jpg", 100),
        ("utkface", "61_1_20170109150557335.jpg.chip.jpg", 61),  # some names lack a part
    ],
)
def test_published_names_give_their_age(pattern, file_name, age):
    assert parse_age(file_name, FILENAME_PATTERNS[pattern]) == age


@pytest.mark.parametrize(
    ("pattern", "path", "age"),
    [
        ("ms1mv3", "/data/my_age_99.set/7_age_8.d/05179510_age_39.jpg", 39),
        ("fgnet", "face_dataset/a.b/Anna.A77/001A02.JPG", 2),
        ("morph2", "/home/Maria.F/FM.31/009055_1M54.JPG", 54),
    ],
)
def test_folders_of_the_path_are_not_looked_at(pattern, path, age):
    assert parse_age(path, FILENAME_PATTERNS[pattern]) == age


@pytest.mark.parametrize(
    ("pattern", "file_name"),
    [
        ("ms1mv3", "05179510.jpg"),
        ("ms1mv3", "05179510_age_.jpg"),
        ("ms1mv3", "05179510_age"),
        ("ms1mv3", "05179510_age_39x.jpg"),
        ("ms1mv3", "05179510_age_-3.jpg"),
        ("ms1mv3", "05179510_age_+3.jpg"),
        ("ms1mv3", "05179510_age_3 9.jpg"),
        ("ms1mv3", "05179510_age_\u0663\u0669.jpg"),  # digits, but not ours
        ("ms1mv3", "05179510_age_\u00b2.jpg"),  # str.isdigit, yet int() fails
        ("ms1mv3", "folder_age_39/plain.jpg"),
        ("fgnet", "001B02.JPG"),
        ("fgnet", "002.JPG"),
        ("morph2", "009055_1X54.JPG"),
        ("morph2", ""),
        ("utkface", "34.jpg"),
        ("utkface", "_34_1_0_2017.jpg"),
    ],
)
def test_a_name_without_an_age_is_refused_with_file_and_pattern(pattern, file_name):
    with pytest.raises(UserError) as caught:
        parse_age(file_name, FILENAME_PATTERNS[pattern])
    message = str(caught.value)
    assert "has no age" in message
    assert repr(file_name) in message
    assert repr(pattern) in message
    assert FILENAME_PATTERNS[pattern].example in message


@pytest.mark.parametrize(
    ("pattern", "file_name", "age"),
    [("ms1mv3", "05179510_age_121.jpg", 121), ("fgnet", "001A999.JPG", 999), ("morph2", "1_1M12345.JPG", 12345)],
)
def test_an_impossible_age_is_refused_with_its_value(pattern, file_name, age):
    with pytest.raises(UserError, match=rf"age {age} .* outside 0 to 120.*{pattern}"):
        parse_age(file_name, FILENAME_PATTERNS[pattern])
