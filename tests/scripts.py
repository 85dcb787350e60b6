"""Loads the top-level scripts as modules (`import test` would give Python's tests), and registers a small backbone."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]  # for programs in this folder; pytest has it

import torch  # noqa: E402

from models.iresnet import BACKBONES, Architecture  # noqa: E402

# For tests alone. Without oneDNN a step of TINY takes half the time of one of SLIM, a sixth of iresnet18_quarter's: a
# single plane is contiguous and channels last at once. SLIM is for tests about the computation itself (folding, export,
# layouts, two processes against one): TINY's first stage has no channels to mix up and no gradient in its shortcut.
TINY, SLIM = "tiny", "slim"
BACKBONES[TINY] = Architecture((1, 1, 1, 2), width=1)
BACKBONES[SLIM] = Architecture((1, 1, 1, 2), width=4)
# oneDNN's gradient of a 1x1 convolution with stride 2, channels last and so few planes ends the process (torch 2.14).
torch.backends.mkldnn.enabled = False


def load_script(name: str) -> ModuleType:
    """The module of `name`.py at the top of the project, loaded once."""
    module_name = f"script_{name}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, ROOT / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # before it runs: dataclasses look their own module up
        spec.loader.exec_module(module)
    return sys.modules[module_name]
