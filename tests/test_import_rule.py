"""The floors: imports go down only, `meta <- utils <- models | data <- evaluation <- training <- scripts`.

models and data do not know each other, nothing imports a script, and there are no circles. The imports of every module
are walked; nothing is run.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BELOW = {  # what a floor may import beside itself
    "meta": set(),
    "utils": {"meta"},
    "models": {"meta", "utils"},
    "data": {"meta", "utils"},
    "evaluation": {"meta", "utils", "models", "data"},
    "training": {"meta", "utils", "models", "data", "evaluation"},
}
ROOMS = set(BELOW) - {"meta"}
OUTSIDE = {"tests", "benchmarks"}  # they know the project, it does not know them
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"meta"}
PROJECT = {*BELOW, *OUTSIDE, *SCRIPTS}
PATTERNS = ("*.py", *(f"{room}/**/*.py" for room in ROOMS))
SOURCES = sorted(path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern))
MAX_FILES = 16  # of a room, rooms within it not counted


def imported_modules(source: str, package: str) -> set[str]:
    """Full names of all modules that `source` imports, wherever in it; `package` is the room it stands in or ""."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # A leading dot is the room, two are the top: `from .. import data` names data.
            base = ".".join(part for part in (package if node.level == 1 else "", node.module) if part)
            names |= {f"{base}.{alias.name}" if base else alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and _name_of(node.func) in ("import_module", "__import__"):
            names |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return names


def _name_of(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def forbidden_imports(path: str, source: str) -> set[str]:
    """The imports in `source`, the module at `path` below the top, that the rule forbids."""
    place = path.removesuffix(".py").split("/")[0]
    forbidden = set()
    for name in imported_modules(source, place if place in ROOMS else ""):
        root = name.split(".")[0]
        if place == "meta" and root == "torch":
            allowed = False
        elif place in BELOW:
            allowed = root in {place, *BELOW[place]} or root not in PROJECT
        else:
            allowed = root not in SCRIPTS and root not in OUTSIDE
        if not allowed:
            forbidden.add(name)
    return forbidden


def test_no_module_imports_what_it_may_not_know():
    found = {path: forbidden_imports(path, (ROOT / path).read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_walk_reaches_scripts_and_rooms():
    assert {"meta.py", "train.py", "models/iefp.py", "data/faces.py", "evaluation/report/page.py"} <= set(SOURCES)
    assert "meta" in {name.split(".")[0] for name in imported_modules((ROOT / "test.py").read_text(), "")}
    assert "models.club.ESTIMATORS" in imported_modules((ROOT / "models" / "iefp.py").read_text(), "models")


def test_no_two_modules_import_each_other():
    modules = {path.removesuffix(".py").replace("/", "."): path for path in SOURCES}
    knows = {
        module: {found for name in imported_modules((ROOT / path).read_text(encoding="utf-8"), "")
                 for found in (name, name.rpartition(".")[0]) if found in modules}
        for module, path in modules.items()
    }  # fmt: skip
    while leaves := {module for module, others in knows.items() if not others & knows.keys()}:
        for module in leaves:
            del knows[module]
    assert not knows, f"a circle among {sorted(knows)}"


def test_a_room_is_no_larger_than_it_should_be():
    folders = {(ROOT / path).parent for path in SOURCES} - {ROOT}
    sizes = {folder.relative_to(ROOT).as_posix(): len(list(folder.glob("*.py"))) for folder in folders}
    assert {room: size for room, size in sizes.items() if size > MAX_FILES} == {}


FORBIDDEN = {
    "meta knows no torch": ("meta.py", "import torch", "torch"),
    "nor a part of it": ("meta.py", "from torch.nn import functional", "torch.nn.functional"),
    "nor a room": ("meta.py", "from utils import files", "utils.files"),
    "the ground floor knows no other": ("utils/files.py", "from data.faces import Faces", "data.faces.Faces"),
    "models know no data": ("models/iefp.py", "import data.faces as f", "data.faces"),
    "data knows no models": ("data/faces.py", "from models import iefp", "models.iefp"),
    "data knows no evaluation": ("data/faces.py", "from evaluation import scoring", "evaluation.scoring"),
    "evaluation knows no training": ("evaluation/scoring.py", "from training import ema", "training.ema"),
    "a room within a room neither": ("data/check/run.py", "import models.weights", "models.weights"),
    "not within a function": ("data/faces.py", "def f():\n    from models import iefp", "models.iefp"),
    "not for type checkers": ("data/faces.py", "if TYPE_CHECKING:\n    import models.iefp", "models.iefp"),
    "not by dots": ("utils/files.py", "from .. import data", "data"),
    "not by dots and a name": ("utils/files.py", "from ..data import faces", "data.faces"),
    "not by a string": ("utils/files.py", "importlib.import_module('data.faces')", "data.faces"),
    "not by a dunder": ("utils/files.py", "__import__('data')", "data"),
    "rooms know no scripts": ("training/ema.py", "import prepare", "prepare"),
    "rooms know no tests": ("data/faces.py", "from tests import reference", "tests.reference"),
    "scripts know no scripts": ("test.py", "from train import TrainConfig", "train.TrainConfig"),
    "not even test": ("train.py", "import test", "test"),
}


def test_the_rule_finds_a_forbidden_import():
    for case, (path, source, found) in FORBIDDEN.items():
        assert forbidden_imports(path, f'"""Made up."""\nimport math\n{source}\n') == {found}, case


def test_the_rule_allows_the_own_room_those_below_and_libraries():
    libraries = "import math\nimport numpy as np\nfrom torch import nn\nimport testing_tools\n"
    for room in ROOMS:
        own = f"from {room}.x import y\nfrom . import z\nfrom .x import y\n"
        below = "".join(f"from {floor} import y\n" for floor in BELOW[room])
        assert forbidden_imports(f"{room}/made_up.py", libraries + own + below) == set()
    rooms = "from meta import UserError\n" + "".join(f"from {room}.x import y\n" for room in ROOMS)
    assert forbidden_imports("train.py", libraries + rooms) == set()
    assert forbidden_imports("meta.py", "import bisect\nfrom dataclasses import dataclass\n") == set()


def test_networks_and_losses_touch_no_files_flags_or_ranks():
    world = {"argparse", "tyro", "os", "sys", "io", "pathlib", "json", "logging"}
    with_files = ("weights.py", "weight_archives.py", "export_files.py")
    for path in sorted((ROOT / "models").rglob("*.py")):
        names = imported_modules(path.read_text(encoding="utf-8"), "models")
        allowed = {"os", "pathlib", "json"} if path.name in with_files else set()
        assert {name.split(".")[0] for name in names} & world <= allowed, path
        assert not any(name.startswith("torch.distributed") for name in names), path
