"""Which module may import which: the source of every module is walked, nothing is run.

meta.py imports nothing of the project, and no torch. models, data and utils import meta and modules of their own room,
never each other; what joins them stands in a script. No module imports a script, tests or benchmarks.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("models", "data", "utils")
OUTSIDE = ("tests", "benchmarks")  # they know the project, it does not know them
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - {"meta"}
PROJECT = {"meta", *ROOMS, *OUTSIDE, *SCRIPTS}
PATTERNS = ("*.py", *(f"{room}/**/*.py" for room in ROOMS))
SOURCES = sorted(path.relative_to(ROOT).as_posix() for pattern in PATTERNS for path in ROOT.glob(pattern))


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
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names |= {argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)}
    return names


def forbidden_imports(path: str, source: str) -> set[str]:
    """The imports in `source`, the module at `path` below the top, that the rule forbids."""
    place = path.split("/")[0]
    room = place if place in ROOMS else ""
    forbidden = set()
    for name in imported_modules(source, room):
        root = name.split(".")[0]
        if path == "meta.py":
            allowed = root not in PROJECT and root != "torch"
        elif room:
            allowed = root in ("meta", room) or root not in PROJECT
        else:
            allowed = root not in SCRIPTS and root not in OUTSIDE
        if not allowed:
            forbidden.add(name)
    return forbidden


@pytest.mark.parametrize("path", SOURCES)
def test_no_module_imports_what_it_may_not_know(path):
    assert forbidden_imports(path, (ROOT / path).read_text(encoding="utf-8")) == set()


def test_the_walk_reaches_scripts_and_rooms():
    assert {"meta.py", "train.py", "models/iefp.py", "data/faces.py", "utils/protocols.py"} <= set(SOURCES)
    assert "meta" in {name.split(".")[0] for name in imported_modules((ROOT / "train.py").read_text(), "")}
    assert "models.club.ESTIMATORS" in imported_modules((ROOT / "models" / "iefp.py").read_text(), "models")


FORBIDDEN = {
    "meta knows no torch": ("meta.py", "import torch", "torch"),
    "nor a part of it": ("meta.py", "from torch.nn import functional", "torch.nn.functional"),
    "nor a room": ("meta.py", "from utils import metrics", "utils.metrics"),
    "models know no data": ("models/iefp.py", "import data.faces as f", "data.faces"),
    "data knows no utils": ("data/faces.py", "from utils.config import flag", "utils.config.flag"),
    "utils know no models": ("utils/report.py", "from models import iefp", "models.iefp"),
    "not within a function": ("utils/report.py", "def f():\n    from models import iefp", "models.iefp"),
    "not for type checkers": ("utils/report.py", "if TYPE_CHECKING:\n    import models.iefp", "models.iefp"),
    "not by dots": ("utils/report.py", "from .. import data", "data"),
    "not by dots and a name": ("utils/report.py", "from ..data import faces", "data.faces"),
    "not by a string": ("utils/report.py", "importlib.import_module('data.faces')", "data.faces"),
    "not by a dunder": ("utils/report.py", "__import__('data')", "data"),
    "rooms know no scripts": ("data/faces.py", "import prepare", "prepare"),
    "rooms know no tests": ("data/faces.py", "from tests import reference", "tests.reference"),
    "scripts know no scripts": ("test.py", "from train import TrainConfig", "train.TrainConfig"),
    "not even test": ("train.py", "import test", "test"),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_the_rule_finds_a_forbidden_import(case):
    path, source, found = FORBIDDEN[case]
    assert forbidden_imports(path, f'"""Made up."""\nimport math\n{source}\n') == {found}


def test_the_rule_allows_meta_the_own_room_and_libraries():
    libraries = "import math\nimport numpy as np\nfrom torch import nn\nimport testing_tools\n"
    for room in ROOMS:
        own = f"from meta import UserError\nfrom {room}.x import y\nfrom . import z\nfrom .x import y\n"
        assert forbidden_imports(f"{room}/made_up.py", libraries + own) == set()
    rooms = "from meta import UserError\nfrom models.iefp import IEFP\nimport data.faces\nfrom utils import metrics\n"
    assert forbidden_imports("train.py", libraries + rooms) == set()
    assert forbidden_imports("meta.py", "import bisect\nfrom dataclasses import dataclass\n") == set()


def test_only_weights_and_exported_files_of_the_models_touch_paths_and_none_flags_or_ranks():
    world = {"argparse", "tyro", "os", "sys", "io", "pathlib", "json", "logging"}
    for path in sorted((ROOT / "models").glob("*.py")):
        names = imported_modules(path.read_text(encoding="utf-8"), "models")
        allowed = {"os", "pathlib", "json"} if path.name in ("weights.py", "export_files.py") else set()
        assert {name.split(".")[0] for name in names} & world <= allowed, path
        assert not any(name.startswith("torch.distributed") for name in names), path
