"""utils/cli.py: flags and argument files, bounds, settings as JSON, the way scripts end."""

import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from scripts import ROOT

from meta import UserError
from utils.cli import as_plain, bounded, check_bounds, expand_argument_files, flag, parse_config, run_script
from utils.files import write_json


@dataclass(frozen=True)
class Settings:
    kind: Literal["plain", "fancy"] = "plain"
    folder: Path = Path("runs/one")
    note: str = ""
    epochs: tuple[int, ...] = bounded((10, 18), low=1)
    sizes: tuple[int, int] = bounded((3, 5), low=2)
    margin: float | None = bounded(None, low=0, high=1.5)
    rate: float = bounded(0.1, above=0)
    count: int = bounded(4, low=2, high=8)
    quick: bool = False
    checked: bool = True


def argument_file(folder: Path, text: str) -> str:
    (folder / "some.args").write_text(text)
    return f"@{folder / 'some.args'}"


# ---------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--kind", "fancy"], "kind", "fancy"),
        (["--folder", "my faces/two"], "folder", Path("my faces/two")),
        (["--note", "a # b"], "note", "a # b"),
        (["--epochs", "3", "5", "7"], "epochs", (3, 5, 7)),
        (["--epochs"], "epochs", ()),
        (["--sizes", "2", "9"], "sizes", (2, 9)),
        (["--margin", "0.5"], "margin", 0.5),
        (["--margin", "None"], "margin", None),
        (["--rate", "1e-4"], "rate", 1e-4),
        (["--quick"], "quick", True),
        (["--no-checked"], "checked", False),
    ],
)
def test_a_flag_of_each_type_sets_its_field_and_no_other(arguments, field, value):
    assert parse_config(Settings, arguments) == dataclasses.replace(Settings(), **{field: value})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kind", "other"],
        ["--count", "three"],
        ["--count", "2.5"],
        ["--sizes", "2"],
        ["--epochs", "3", "x"],
        ["--quick", "True"],
        ["--unheard-of", "1"],
        ["stray"],
    ],
)
def test_a_flag_that_does_not_parse_is_status_2_and_named(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(Settings, arguments)
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert any(word in shown for word in arguments)


def test_without_arguments_the_command_line_is_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--count", "7"])
    assert parse_config(Settings).count == 7


def test_help_names_every_flag_and_is_status_0(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(Settings, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag(field.name) in shown or f"--no-{field.name}" in shown for field in dataclasses.fields(Settings))


def test_a_flag_is_the_fields_name_with_hyphens():
    assert flag("learning_rate_epochs") == "--learning-rate-epochs"


# -------------------------------------------------------------------------------------------------- argument files


def test_an_argument_file_stands_for_its_words_without_comments(tmp_path):
    text = "# whose faces? don't ask\n--count 5   # five\n\n  --folder 'my faces/#2' --note \"it's\"\n--epochs 3\n  7\n"
    words = ["--count", "5", "--folder", "my faces/#2", "--note", "it's", "--epochs", "3", "7"]
    assert expand_argument_files([argument_file(tmp_path, text)]) == words
    expected = Settings(count=5, folder=Path("my faces/#2"), note="it's", epochs=(3, 7))
    assert parse_config(Settings, [argument_file(tmp_path, text)]) == expected


def test_words_stand_in_the_order_given_and_an_empty_file_adds_none(tmp_path):
    named = argument_file(tmp_path, "b c")
    (tmp_path / "empty.args").write_text("# nothing\n")
    assert expand_argument_files(["a", named, f"@{tmp_path / 'empty.args'}", "d", named]) == list("abcdbc")


def test_later_flags_win_whichever_side_of_the_file_they_are_on(tmp_path):
    named = argument_file(tmp_path, "--count 5 --epochs 3 4 --margin 1")
    after = parse_config(Settings, [named, "--count", "6", "--epochs", "9", "--margin", "None"])
    assert (after.count, after.epochs, after.margin) == (6, (9,), None)
    before = parse_config(Settings, ["--count", "6", "--epochs", "9", named])
    assert (before.count, before.epochs, before.margin) == (5, (3, 4), 1.0)


@pytest.mark.parametrize("what", ["missing", "a folder", "an open quote", "bytes"])
def test_an_argument_file_that_cannot_be_read_is_named_in_one_line(tmp_path, what):
    path = tmp_path / "some.args"
    if what == "a folder":
        path.mkdir()
    elif what == "an open quote":
        path.write_text('--note "never closed')
    elif what == "bytes":
        path.write_bytes(b"--note \xff\xfe")
    with pytest.raises(UserError) as refused:
        parse_config(Settings, [f"@{path}"])
    assert f"argument file {path} can't be read" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.args")), ids=lambda path: path.stem)
def test_every_recipe_is_flags_and_values(recipe):
    words = expand_argument_files([f"@{recipe}"])
    assert words[0].startswith("--") and not any("#" in word for word in words)


# --------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(count=2),
        Settings(count=8),
        Settings(rate=1e-300),
        Settings(margin=0.0),
        Settings(margin=1.5),
        Settings(margin=None),
        Settings(epochs=()),
        Settings(epochs=(1,)),
    ],
)
def test_the_edges_of_a_range_none_and_an_empty_tuple_are_inside(settings):
    check_bounds(settings)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--count", "1"], "--count 1 is out of range: give a number at least 2 and at most 8."),
        (["--count", "9"], "--count 9 is out of range: give a number at least 2 and at most 8."),
        (["--rate", "0"], "--rate 0.0 is out of range: give a number above 0."),
        (["--rate", "-1"], "--rate -1.0 is out of range: give a number above 0."),
        (["--rate", "nan"], "--rate nan is out of range: give a number above 0."),
        (["--margin", "nan"], "--margin nan is out of range: give a number at least 0 and at most 1.5."),
        (["--margin", "inf"], "--margin inf is out of range: give a number at least 0 and at most 1.5."),
        (["--epochs", "4", "0", "-3"], "--epochs 0 is out of range: give a number at least 1."),
        (["--sizes", "2", "1"], "--sizes 1 is out of range: give a number at least 2."),
    ],
)
def test_a_value_out_of_its_range_is_refused_with_flag_value_and_range(arguments, sentence):
    with pytest.raises(UserError) as refused:
        parse_config(Settings, arguments)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("limits", [{"low": 0}, {"high": 0}, {"above": 0}])
def test_not_a_number_is_out_of_every_range(limits):
    settings = dataclasses.make_dataclass("One", [("one", float, bounded(math.nan, **limits))])()
    with pytest.raises(UserError, match="--one nan is out of range"):
        check_bounds(settings)


# ----------------------------------------------------------------------------------------------------------- JSON


def test_settings_become_plain_values_and_come_back_from_a_file_equal(tmp_path):
    settings = Settings(folder=Path("a/b c"), epochs=(), rate=1e-4, note="naïve \N{SNOWMAN}")
    plain = as_plain(settings)
    assert plain == {
        "kind": "plain",
        "folder": "a/b c",
        "note": "naïve \N{SNOWMAN}",
        "epochs": [],
        "sizes": [3, 5],
        "margin": None,
        "rate": 1e-4,
        "count": 4,
        "quick": False,
        "checked": True,
    }
    write_json(tmp_path / "config.json", plain)
    assert json.loads((tmp_path / "config.json").read_text()) == plain


def test_written_json_makes_its_folder_replaces_the_old_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "folder" / "results.json"
    for content in ({"old": [1, 2]}, {"new": None}):
        write_json(path, content)
        assert json.loads(path.read_text()) == content
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("what", ["no JSON", "disk full"])
def test_json_that_fails_to_write_leaves_the_old_file_alone(tmp_path, monkeypatch, what):
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})

    class FullDisk(io.TextIOWrapper):
        def write(self, text: str) -> int:
            super().write(text[: len(text) // 2])
            raise OSError(28, "No space left on device")

    if what == "disk full":
        monkeypatch.setattr("utils.files.open", lambda path, *_, **__: FullDisk(open(path, "wb")), raising=False)
    with pytest.raises(OSError if what == "disk full" else TypeError):
        write_json(path, {"new": 1} if what == "disk full" else {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------- how scripts end


def ending(main, monkeypatch, capsys) -> tuple[int, str]:
    """The exit status and what stands on stderr."""
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    return ended.value.code, capsys.readouterr().err


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (2, 2)])
def test_the_status_is_what_main_returns_and_0_for_nothing(returned, status, monkeypatch, capsys):
    assert ending(lambda: returned, monkeypatch, capsys) == (status, "")


def test_a_users_mistake_is_the_scripts_name_one_sentence_and_status_2(monkeypatch, capsys):
    mistake = raising(UserError("no faces in x: give another folder."))
    assert ending(mistake, monkeypatch, capsys) == (2, "script.py: no faces in x: give another folder.\n")


def test_an_interrupt_is_status_130_without_traceback(monkeypatch, capsys):
    assert ending(raising(KeyboardInterrupt()), monkeypatch, capsys) == (130, "script.py: interrupted\n")


def test_a_status_given_by_the_flag_parser_stays(monkeypatch, capsys):
    assert ending(raising(SystemExit(2)), monkeypatch, capsys) == (2, "")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied", "x")]
)
def test_a_full_disk_and_a_folder_that_may_not_be_written_are_one_sentence_and_status_2(error, monkeypatch, capsys):
    sentence = f"script.py: {error}: check that path, its permissions, and the free space.\n"
    assert ending(raising(error), monkeypatch, capsys) == (2, sentence)


@pytest.mark.parametrize(
    "error", [ValueError("ours"), RuntimeError("ours"), AssertionError("ours"), OSError(9, "ours")]
)
def test_a_mistake_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        run_script(raising(error))
    assert raised.value is error


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_of_our_output_that_goes_away_is_no_error_message(unbuffered):
    program = "from utils.cli import run_script\nrun_script(lambda: print('a table'))"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")  # 128 + SIGPIPE, as of other programs
