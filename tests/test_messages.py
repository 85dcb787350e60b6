"""Messages lead somewhere: what they say of files and folders is so, and commands and flags that they name exist."""

import ast
import dataclasses
import re
import shutil
import typing
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from scripts import ROOT, load_script

from data.alignment.photos import list_pictures
from data.alignment.template import HOW_TO_ALIGN
from data.benchmarks import find_spec, open_eval_set
from data.check.run import check
from data.index_cache import open_index
from data.pairs import read_pair_list
from data.releases.agedb import plan_agedb
from data.releases.cacd import plan_cacd
from data.releases.calfw import plan_calfw
from data.releases.fgnet import plan_fgnet
from data.verification_bins import write_verification_bin
from meta import BENCHMARKS, FILENAME_PATTERNS, TRAINING_SETS
from utils.cli import flag

FGNET = BENCHMARKS["fgnet"]


def open_set(name: str, root: Path):
    return open_eval_set(find_spec(name, root), lambda sentence: None)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (112, 112)).save(folder / name, "JPEG")
    return folder


@pytest.fixture
def flat(tiny_faces, tmp_path):
    """A face_dataset whose FG-NET has all pictures in one folder."""
    folder = tmp_path / "flat" / FGNET.folders[0]
    folder.mkdir(parents=True)
    for path in (tiny_faces / FGNET.folders[0]).glob("*/*"):
        shutil.copy(path, folder)
    return folder.parent


def test_a_flat_fgnet_folder_is_named_as_the_dataset_check_names_it(flat):
    """16: "holds no images" with the download link did not mention 15 pictures that lie there."""
    reply = refused(lambda: open_set("fgnet", flat))
    assert "15 pictures lie directly in it and are not used (such as '001A02.JPG')" in reply
    assert "put each into the folder of its identity" in reply and "https://" not in reply
    checked = check(flat, ["fgnet"])[0]
    assert checked.what.startswith("15 pictures lie directly in '") and checked.advice in reply
    training = refused(lambda: open_index(flat / FGNET.folders[0], FILENAME_PATTERNS["fgnet"], cache=False))
    assert "15 pictures lie directly in it" in training and "put each into the folder of its identity" in training


def test_the_command_that_a_flat_fgnet_folder_is_pointed_to_makes_the_set(flat, run_main, tmp_path):
    """16: `prepare.py align-fgnet --raw THERE --already-aligned` does what the message promises."""
    message = refused(lambda: open_set("fgnet", flat))
    command, raw = re.search(r"`python prepare.py (\S+) (--raw) THERE`.*(?=--already-aligned)", message).groups()
    there = (flat / FGNET.folders[0]).rename(tmp_path / "there")
    assert run_main("prepare", command, raw, there, "--already-aligned", "--output", flat, "--workers", 1).status == 0
    assert len(open_set("fgnet", flat).sides[0][0]) == 15


def test_a_folder_too_deep_is_named_as_the_dataset_check_names_it(tiny_faces, tmp_path):
    """16: an archive unpacked into a folder of its own name."""
    shutil.copytree(tiny_faces / FGNET.folders[0], tmp_path / FGNET.folders[0] / FGNET.folders[0])
    message = refused(lambda: open_set("fgnet", tmp_path))
    assert f"1 folders in it hold their pictures a folder too deep (such as {FGNET.folders[0]!r}): move " in message
    assert check(tmp_path, ["fgnet"])[0].advice in message


def pack(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("001/001A02.JPG", b"")
    return path


PACKED = {
    "FG-NET": (f"{FGNET.folders[0]}.zip", lambda root: open_set("fgnet", root)),
    "MORPH2, of several folders": ("ID_processed_morph2_2.tar.gz", lambda root: open_set("morph2_3000", root)),
    "CALFW, around its pictures": ("CALFW.zip", lambda root: open_set("calfw", root)),
    "training set": ("mine.7z", lambda root: open_index(root / "mine", None, cache=False)),
    "the archive itself": ("mine.zip", lambda root: open_index(root / "mine.zip", None, cache=False)),
    "pictures of a list": ("faces.rar", lambda root: read_pair_list(touch(root, "a.jpg") / "list", root / "faces")),
    "a release": ("fgnet.zip", lambda root: plan_fgnet(root / "fgnet.zip", already_aligned=True)),
    "another release": ("cacd.zip", lambda root: plan_cacd(root / "cacd", already_aligned=True)),
    "pictures to embed": ("faces.zip", lambda root: list_pictures([root / "faces"])),
    "face_dataset": ("face_dataset.zip", lambda root: check(root / "face_dataset", ["fgnet"])),
    "face_dataset is the archive": ("face_dataset.zip", lambda root: open_set("fgnet", root / "face_dataset.zip")),
}


@pytest.mark.parametrize("case", PACKED)
def test_a_folder_that_is_still_packed_is_to_be_unpacked(tmp_path, case):
    """16: "does not exist" for a folder whose archive lies beside it."""
    name, action = PACKED[case]
    archive = pack(tmp_path / name)
    (tmp_path / "list").write_text("a.jpg a.jpg 1\n")
    message = refused(lambda: action(tmp_path))
    assert repr(str(archive)) in message and "unpack it" in message and "https://" not in message


def test_the_dataset_check_finds_the_archives_too(tmp_path):
    """16: check says the same of a set that is named and still packed, for each kind of set."""
    names = {"ms1mv3": TRAINING_SETS["ms1mv3"].folder, "fgnet": FGNET.folders[0], "calfw": "CALFW"}
    archives = {name: pack(tmp_path / f"{folder}.zip") for name, folder in names.items()}
    found = {finding.name: finding for finding in check(tmp_path, list(names))}
    for name, archive in archives.items():
        assert f"but its archive {str(archive)!r} is there" in found[name].what
        assert found[name].severity == "wrong" and found[name].advice.startswith("unpack it")


@pytest.mark.parametrize("script", ["embed", "test", "export"])
def test_a_folder_given_as_weights_names_the_files_in_it(run_main, weights, tmp_path, script):
    """16: "does not exist" for a folder that does."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(weights, run / "iefp.pth")
    (run / "config.json").write_text("{}")
    flags = {"embed": [touch(tmp_path, "a.jpg") / "a.jpg", "-o", tmp_path / "out.npz"],
             "test": ["--output", tmp_path / "results", "--face-dataset", tmp_path],
             "export": ["-o", tmp_path / "out.pt2"]}  # fmt: skip
    outcome = run_main(script, "--weights", run, *flags[script])
    assert outcome.status == 2
    assert f"{run} is a folder, no weight file: give one of the files in it, such as {run / 'iefp.pth'}" in outcome.err
    (run / "iefp.pth").unlink()
    assert "it holds no .pth or .safetensors file" in run_main(script, "--weights", run, *flags[script]).err


AGEDB = tuple(f"{number}_P{number // 2}_{20 + number}_f.jpg" for number in range(20))


def agedb_list(path: Path, before: str) -> Path:
    genuine = [(AGEDB[2 * k], AGEDB[2 * k + 1], 1) for k in range(10)]
    impostor = [(AGEDB[2 * k], AGEDB[2 * k - 1], 0) for k in range(10)]
    pairs = [pair for two in zip(genuine, impostor, strict=True) for pair in two]
    path.write_text("".join(f"{before}{a} {before}{b} {genuine}\n" for a, b, genuine in pairs))
    return path


def test_a_protocol_may_name_pictures_with_their_folders(tmp_path):
    """16: a line that was 'name_a name_b 1|0' was refused for a slash, as not being that.

    Folders in a list are not passed over: a picture of that name in another folder is not taken.
    """
    raw = touch(tmp_path / "raw", *(f"03_Protocol_Images/{name}" for name in AGEDB))
    for before in ("", "03_Protocol_Images/", "./03_Protocol_Images/", "raw/03_Protocol_Images/", "others/"):
        (plan,) = plan_agedb(raw, already_aligned=True, pairs=agedb_list(tmp_path / "pairs.txt", before))
        (lines,) = plan.lists.values()
        if before == "others/":
            assert not plan.faces and len(plan.left_out) == len(AGEDB)
            assert all(line.startswith("others/") for line in lines.splitlines())
        else:
            assert not plan.left_out and len(plan.faces) == len(AGEDB)
            assert lines.splitlines()[0] == f"{AGEDB[0]} {AGEDB[1]} 1" and "/" not in lines


def test_a_name_that_comes_with_and_without_its_folder_is_one_picture(tmp_path):
    """16: CALFW's list takes folders as well, and a picture is aligned once."""
    people = [(f"P{k}_0001.jpg", f"P{k}_0002.jpg") for k in range(10)]
    touch(tmp_path / "raw", *(f"images/{name}" for pair in people for name in pair))
    lines = [line for k, (a, b) in enumerate(people) for line in (f"images/{a} {k + 1}", f"images/{b} {k + 1}")]
    lines += [line for k in range(10) for line in (f"{people[k][0]} 0", f"{people[k - 1][1]} 0")]
    (tmp_path / "raw" / "pairs_CALFW.txt").write_text("\n".join(lines))
    plan = plan_calfw(tmp_path / "raw", already_aligned=True)
    assert len(plan.faces) == 20 and not plan.left_out
    assert len({face.targets for face in plan.faces}) == 20


def test_pictures_that_are_not_aligned_are_pointed_to_what_aligns_them(tmp_path):
    """16: "align them first" named no command that does."""
    touch(tmp_path, "x/a.jpg")
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "b.jpg")
    (tmp_path / "list").write_text("x/a.jpg b.jpg 0\n")  # with folders, as it always did
    pairs = read_pair_list(tmp_path / "list", tmp_path)
    message = refused(lambda: write_verification_bin(pairs, tmp_path / "x.bin"))
    assert "if their faces are aligned, give --reencode" in message and message.endswith(f"if not, {HOW_TO_ALIGN}.")


CONFIGS = {"train": "TrainConfig", "test": "TestConfig", "embed": "EmbedConfig", "export": "ExportConfig"}
OTHER_PROGRAMS = {"--help", "--nproc-per-node"}  # of every script, of torchrun
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w-]*\{)")  # not what an f-string puts together


def flags_of(config_class: type) -> set[str]:
    names = [flag(field.name) for field in dataclasses.fields(config_class)]
    return {*names, *(f"--no-{name[2:]}" for name in names), *OTHER_PROGRAMS}


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """The flags of each script, and of each subcommand as "prepare ages"."""
    found = {script: flags_of(getattr(load_script(script), name)) for script, name in CONFIGS.items()}
    for annotated in typing.get_args(load_script("prepare").Subcommand):
        config_class, subcommand = typing.get_args(annotated)
        found[f"prepare {subcommand.name}"] = flags_of(config_class)
    found["prepare"] = set().union(*(known for name, known in found.items() if name.startswith("prepare ")))
    return found


def texts(source: str) -> list[tuple[int, str]]:
    """(line, text) of all strings that are no docstrings; what is put into an f-string is left out as {}."""
    tree = ast.parse(source)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if id(node) in inner | docstrings:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            found.append((node.lineno, "".join(parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, node.value))
    return [(line, text) for line, text in found if "var(--" not in text]  # style sheets have names like flags


def wrong_commands(text: str, flags: dict[str, set[str]], own: set[str]) -> list[str]:
    """Flags and subcommands in a message that do not exist; `own` are those of the script that it is part of.

    Behind the name of a script, up to the end of a quoted command or half of the sentence, its flags are meant.
    """
    wrong, rest = [], text
    for found in re.finditer(r"\b(train|test|embed|export|prepare)\.py(?: ([a-z][a-z-]*)(?![a-z{-]))?([^`;:]*)", text):
        script, word, behind = found.groups()
        rest = rest.replace(found.group(), " ")
        known = flags[script]
        if script == "prepare" and word is not None:
            known = flags.get(f"prepare {word}", set())
            wrong += [] if known else [f"prepare.py {word}"]
        wrong += [f"{script}.py {name}" for name in FLAG.findall(behind) if name not in known | own]
    return wrong + [name for name in FLAG.findall(rest) if name not in own]


ROOMS = ("utils", "models", "data", "evaluation", "training")
SOURCES = sorted(path for pattern in ("*.py", *(f"{room}/**/*.py" for room in ROOMS)) for path in ROOT.glob(pattern))


def test_commands_and_flags_in_messages_exist(flags):
    """16: a message of a script names its own flags, or another script before them; one of a room flags that exist."""
    wrong = {}
    for path in SOURCES:
        is_script = path.parent == ROOT and path.stem in flags
        own = flags[path.stem] if is_script else set().union(*flags.values())
        for line, text in texts(path.read_text(encoding="utf-8")):
            if found := wrong_commands(text, flags, own):
                wrong[f"{path.relative_to(ROOT)}:{line}"] = found
    assert not wrong


def test_what_does_not_exist_is_found(flags):
    """16: the check above sees invented flags and commands, and flags of another script."""
    for text, own, found in [
        ("give --alow-missing to go on", flags["test"], ["--alow-missing"]),
        ("give --allow-unknown", flags["export"], ["--allow-unknown"]),
        ("test.py --allow-missing leaves them out", flags["export"], []),
        ("test.py --gallery finds them", flags["test"], ["test.py --gallery"]),
        ("`python prepare.py align-photos --raw X` does it", set(), ["prepare.py align-photos", "prepare.py --raw"]),
        ("`python prepare.py ages --data X` makes them, --far too", {"--far"}, []),
        ("python prepare.py bin --raw X", set(), ["prepare.py --raw"]),
    ]:
        assert wrong_commands(text, flags, own) == found, text
    assert texts('"""--a"""\nx = f"--b {y} --c" + "--d"\n') == [(2, "--b {} --c"), (2, "--d")]


def test_each_benchmark_has_the_align_command_that_messages_name(flags):
    """16: `python prepare.py align-NAME --raw` exists for each of them."""
    for benchmark in BENCHMARKS.values():
        script, subcommand = benchmark.align_command.split()[1:]
        assert script == "prepare.py" and {"--raw", "--already-aligned"} <= flags[f"prepare {subcommand}"]


def test_a_message_about_weights_fits_a_damaged_archive(tmp_path):
    """16: a damaged .zip whose end speaks of several disks is a finding of check and no traceback."""
    path = tmp_path / "pretrained_IEFP_models" / "ms1mv3_iresnet50_IEFP.pth"
    path.parent.mkdir()
    torch.save({"x": torch.ones(3)}, path)
    content = path.read_bytes()
    path.write_bytes(content[:-22] + b"PK\x06\x07\x01" + bytes(15) + content[-22:])
    describe = load_script("prepare").describe_weights
    (found,) = check(tmp_path, ["iefp_weights"], weights_root=tmp_path, read_weights=describe)
    assert found.severity == "wrong" and "can't be read as a weight file" in found.what
