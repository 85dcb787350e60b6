"""The README's commands: every flag parses, every file and make target it names exists."""

import re
import shlex

import pytest
from scripts import ROOT, load_script

import meta
from utils.cli import parse_config

CONFIGS = {
    "train": "TrainConfig",
    "test": "TestConfig",
    "prepare": "Subcommand",
    "embed": "EmbedConfig",
    "export": "ExportConfig",
    "purify": "PurifyConfig",
}
PAGES = [ROOT / "README.md", *ROOT.glob("*/README.md"), *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """The lines of all bash blocks, and every inline `python X.py ...`."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            found += [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]
        found += [" ".join(code.split()) for code in re.findall(r"`(python[^`]*\.py[^`]*)`", text)]
    return found


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_every_command_in_the_readme_is_accepted(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0].startswith("./"):
        script, flags = words[0][2:], words[1:]
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} can't be run"
        script = script.replace(".sh", ".py")
    elif words[0] in ("python", "torchrun"):
        place = next(i for i, word in enumerate(words) if word.endswith(".py"))
        script, flags = words[place], words[place + 1 :]
    else:
        assert words[0] == "cp" or words[:2] in (["pip", "install"], ["tensorboard", "--logdir"]), "no test knows it"
        return
    if "/" in script:  # a program beside the scripts: tests/fuzz.py, benchmarks/step.py
        assert (ROOT / script).is_file()
        return
    name = script.removesuffix(".py")
    parse_config(getattr(load_script(name), CONFIGS[name]), flags)


def test_every_recipe_is_accepted():
    for recipe in (ROOT / "recipes").glob("*.args"):
        name = recipe.stem.split("-")[-1]
        name = name if name in ("test", "purify") else "train"
        parse_config(getattr(load_script(name), CONFIGS[name]), [f"@{recipe}"])


def test_files_and_folders_named_by_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`((?:models|data|utils|tests|recipes|face_dataset)/[^`]*|[a-z]+\.(?:py|sh))`", text))
    named |= set(re.findall(r"\]\(([^)]*\.png)\)", text))
    of_users = {name for name in named if re.match(r"face_dataset/.*[^d]$", name)}  # data sets, not in the repository
    assert len(named - of_users) >= 8
    for name in named - of_users:
        assert (ROOT / name).exists(), name


def test_the_readme_names_the_published_files_as_meta_does():
    text = (ROOT / "README.md").read_text()
    for weights in meta.WEIGHT_FILES.values():
        assert weights.path in text
    page = (ROOT / "face_dataset" / "README.md").read_text()
    for benchmark in meta.BENCHMARKS.values():
        assert benchmark.source in page and benchmark.folders[0].split("/")[0] in page
