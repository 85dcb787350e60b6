"""utils/cli.py: flags and argument files, bounds, settings as JSON, the way scripts end."""

import dataclasses
import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from processes import in_processes

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


@pytest.mark.parametrize(("words", "field", "value"), [
    ("--kind fancy", "kind", "fancy"), ("--folder a/two", "folder", Path("a/two")),
    ("--epochs 3 5 7", "epochs", (3, 5, 7)), ("--epochs", "epochs", ()), ("--sizes 2 9", "sizes", (2, 9)),
    ("--margin 0.5", "margin", 0.5),
    ("--margin None", "margin", None), ("--rate 1e-4", "rate", 1e-4), ("--quick", "quick", True),
    ("--no-checked", "checked", False),
])  # fmt: skip
def test_a_flag_of_each_type_sets_its_field_and_no_other(words, field, value, monkeypatch):
    expected = dataclasses.replace(Settings(), **{field: value})
    monkeypatch.setattr(sys, "argv", ["script.py", *words.split()])
    assert parse_config(Settings, words.split()) == parse_config(Settings) == expected


@pytest.mark.parametrize("line", ["--kind other", "--count three", "--count 2.5", "--sizes 2", "--epochs 3 x",
                                  "--quick True", "--unheard-of 1", "stray"])  # fmt: skip
def test_a_flag_that_does_not_parse_is_status_2_and_named(line, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(Settings, line.split())
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert any(word in shown for word in line.split())


def test_help_names_every_flag_and_is_status_0(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(Settings, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag(field.name) in shown or f"--no-{field.name}" in shown for field in dataclasses.fields(Settings))


def test_an_argument_file_stands_for_its_words_without_comments(tmp_path):
    text = "# whose faces? don't ask\n--count 5   # five\n\n  --folder 'my faces/#2' --note \"it's\"\n--epochs 3\n  7\n"
    words = ["--count", "5", "--folder", "my faces/#2", "--note", "it's", "--epochs", "3", "7"]
    assert expand_argument_files([argument_file(tmp_path, text)]) == words
    expected = Settings(count=5, folder=Path("my faces/#2"), note="it's", epochs=(3, 7))
    assert parse_config(Settings, [argument_file(tmp_path, text)]) == expected


def test_later_flags_win_whichever_side_of_the_file_they_are_on(tmp_path):
    named = argument_file(tmp_path, "--count 5 --epochs 3 4 --margin 1")
    after = parse_config(Settings, [named, "--count", "6", "--epochs", "9", "--margin", "None"])
    assert (after.count, after.epochs, after.margin) == (6, (9,), None)
    before = parse_config(Settings, ["--count", "6", "--epochs", "9", named])
    assert (before.count, before.epochs, before.margin) == (5, (3, 4), 1.0)


def test_the_edges_of_a_range_none_and_an_empty_tuple_are_inside():
    for settings in ({}, {"count": 2}, {"count": 8}, {"rate": 1e-300}, {"margin": 0.0}, {"margin": 1.5},
                     {"margin": None}, {"epochs": ()}, {"epochs": (1,)}):  # fmt: skip
        check_bounds(Settings(**settings))


@pytest.mark.parametrize(("line", "value", "limits"), [
    ("--count 1", "--count 1", "at least 2 and at most 8"), ("--count 9", "--count 9", "at least 2 and at most 8"),
    ("--rate 0", "--rate 0.0", "above 0"), ("--rate nan", "--rate nan", "above 0"),
    ("--margin nan", "--margin nan", "at least 0 and at most 1.5"),
    ("--margin inf", "--margin inf", "at least 0 and at most 1.5"),
    ("--epochs 4 0 -3", "--epochs 0", "at least 1"), ("--sizes 2 1", "--sizes 1", "at least 2"),
])  # fmt: skip
def test_a_value_out_of_its_range_is_refused_with_flag_value_and_range(line, value, limits):
    with pytest.raises(UserError) as refused:
        parse_config(Settings, line.split())
    assert str(refused.value) == f"{value} is out of range: give a number {limits}."


def test_settings_become_plain_values_and_come_back_from_a_file_equal(tmp_path):
    settings = Settings(folder=Path("a/b c"), epochs=(), rate=1e-4, note="naïve \N{SNOWMAN}")
    plain = as_plain(settings)
    assert plain == {
        "kind": "plain", "folder": "a/b c", "note": "naïve \N{SNOWMAN}", "epochs": [], "sizes": [3, 5], "margin": None,
        "rate": 1e-4, "count": 4, "quick": False, "checked": True,
    }  # fmt: skip
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


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(("main", "status", "words"), [
    (lambda: None, 0, ""), (lambda: 0, 0, ""), (lambda: 2, 2, ""), (raising(SystemExit(2)), 2, ""),
    (raising(UserError("no faces: give some.")), 2, "script.py: no faces: give some.\n"),
    (raising(KeyboardInterrupt()), 130, "script.py: interrupted\n"),
    *((raising(error), 2, f"script.py: {error}: check that path, its permissions, and the free space.\n")
      for error in (OSError(28, "No space left on device"), PermissionError(13, "Permission denied", "x"))),
])  # fmt: skip
def test_the_status_is_what_main_returns_and_a_users_mistake_one_sentence(main, status, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/some/where/script.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert (ended.value.code, capsys.readouterr().err) == (status, words)


@pytest.mark.parametrize("error", [ValueError("ours"), AssertionError("ours"), OSError(9, "ours")], ids=repr)
def test_a_mistake_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        run_script(raising(error))
    assert raised.value is error


def print_to_nobody(at_once: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, sys.stdout.fileno())
    sys.stdout.reconfigure(write_through=at_once)
    run_script(lambda: print("a table"))


@pytest.mark.parametrize("at_once", [False, True])
def test_a_reader_of_our_output_that_goes_away_is_no_error_message(at_once):
    ended = in_processes(1, print_to_nobody, at_once)
    assert (ended.statuses, ended.err) == ([141], "")  # 128 + SIGPIPE, as of other programs
