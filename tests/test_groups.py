"""test.py --group: what it says of groups of models is what results.json says of each, in table, JSON and page."""

import contextlib
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripts import load_script

from evaluation.embeddings.feature_files import write_embeddings
from evaluation.report.sections import sections_of
from utils.cli import parse_config


@pytest.fixture(scope="module")
def files(tiny_faces, weights, tmp_path_factory) -> list[Path]:
    """Three weight files, the weights and two with noise, and a file of made-up embeddings of FG-NET's pictures."""
    folder, tensors = tmp_path_factory.mktemp("seeds"), torch.load(weights, weights_only=True)
    paths = [folder / name for name in ("a0.pth", "b0.pth", "a1.pth", "b1.npz")]
    for seed, path in enumerate(paths[:3]):
        draws = torch.Generator().manual_seed(seed)
        torch.save({key: value + seed * 0.3 * torch.randn(value.shape, generator=draws)
                    if key.endswith("conv1.weight") else value for key, value in tensors.items()}, path)  # fmt: skip
    root = tiny_faces / "ID_processed_FGNET"
    names = [path.relative_to(root).as_posix() for path in sorted(root.glob("*/*.JPG"))]
    write_embeddings(paths[3], names, np.random.default_rng(0).normal(size=(len(names), 8)))
    return paths


@pytest.fixture(scope="module")
def tested(tiny_faces, files, tmp_path_factory) -> SimpleNamespace:
    """Two groups of two seeds on FG-NET."""
    a0, b0, a1, b1 = map(str, files)
    output, script = tmp_path_factory.mktemp("groups"), load_script("test")
    flags = ["--group", "plain", a0, a1, "--group", "other", b0, b1, "--face-dataset", tiny_faces, "--output", output,
             "--benchmarks", "fgnet", "--workers", 0, "--device", "cpu", "--no-keep-embeddings"]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert script.test(parse_config(script.TestConfig, list(map(str, flags)))) == 0
    report, page = json.loads((output / "results.json").read_text()), (output / "report.html").read_text()
    return SimpleNamespace(out=out.getvalue(), report=report, page=page, table=(output / "results.md").read_text())


def test_rows_are_means_and_paired_differences_of_the_models_own_figures(tested):
    groups, models = tested.report["groups"], {one["name"]: one["results"] for one in tested.report["models"]}
    members = {member["name"]: member["models"] for member in groups["members"]}
    assert members == {"plain": ["a0.pth", "a1.pth"], "other": ["b0.pth", "b1.npz"]} and groups["first"] == "plain"
    rows = {(row["measure"], row["group"]): row for row in groups["figures"]}
    rank1 = {
        name: [models[model]["fgnet"]["leave_one_out"]["concatenate"]["rank1_percent"] for model in of_group]
        for name, of_group in members.items()
    }
    assert len(set(rank1["plain"])) == len(set(rank1["other"])) == 2
    for name, values in rank1.items():
        row = rows["leave-one-out rank-1 %", name]
        assert row["values"] == values and row["mean"] == pytest.approx(np.mean(values))
        assert row["deviation"] == pytest.approx(np.std(values, ddof=1))
    difference = rows["leave-one-out rank-1 %", "other"]["difference"]
    apart = np.subtract(rank1["other"], rank1["plain"])
    assert difference["mean"] == pytest.approx(apart.mean()) and difference["num_seeds"] == 2
    assert difference["half_width"] == pytest.approx(12.7062 * apart.std(ddof=1) / 2**0.5, rel=1e-4)
    r2 = [models[name]["fgnet"]["analysis"]["leaks"]["age_in_identity"]["age_r2"] for name in members["plain"]]
    assert rows["age probe, R2", "plain"]["values"] == r2


def test_the_table_stands_on_the_terminal_and_in_results_md_after_those_of_the_models(tested):
    assert tested.table.strip() in tested.out and tested.report["comparisons"] == []
    groups = re.sub(" +", " ", tested.table[tested.table.index("mean ± deviation") :])
    assert "| less plain |" in groups and tested.table.index("b1.npz") < tested.table.index("mean ± deviation")
    row = next(row for row in tested.report["groups"]["figures"] if row["group"] == "plain")
    assert f"| {row['mean']:.2f} ± {row['deviation']:.2f} |" in groups
    assert "With 2 pairs no p-value is below 0.5." in groups
    assert "FG-NET, age error, in age groups, other: 1 of 2 pairs have this figure." in groups  # embeddings know no age


def test_the_page_begins_with_the_groups_and_draws_one_model_of_each(tested):
    page = tested.page
    places = [page.index(text) for text in ("Groups over their seeds", "Pairs of models", "Main figures")]
    assert places == sorted(places) and page.index("Models are compared by group") > places[-1]
    errors = page[page.index('id="worst-errors"') : page.index('id="did-not-run"')]
    assert "a0.pth" in errors and "b0.pth" in errors and "a1.pth" not in errors
    assert "The first model of each group is shown" in errors
    assert "a1.pth" in page[places[-1] : page.index('id="side-by-side"')]


def test_a_page_of_groups_that_are_not_whole_has_its_sections_all_the_same(tested):
    for groups in ({}, {"members": [{}, {"name": 3, "models": "x"}], "figures": [{}, {"mean": "x"}]}, {"figures": 1}):
        summary = sections_of(tested.report | {"groups": groups})[0].blocks
        assert "Main figures" in [getattr(block, "caption", "") for block in summary]


def test_one_seed_a_group_gives_differences_without_intervals_and_says_so(run_main, tiny_faces, files, tmp_path):
    flags = ("--face-dataset", tiny_faces, "--output", tmp_path, "--benchmarks", "fgnet", "--no-analysis",
             "--workers", 0, "--device", "cpu", "--no-keep-embeddings")  # fmt: skip
    outcome = run_main("test", "--group", "a", files[0], "--group", "b", files[2], *flags)
    assert outcome.status == 0 and "A group has one seed: there is no deviation and no interval." in outcome.out
    rows = json.loads((tmp_path / "results.json").read_text())["groups"]["figures"]
    assert all(row["deviation"] is None for row in rows) and "±" not in outcome.out.split("mean ± deviation")[1]
    assert [row["difference"]["half_width"] for row in rows if row["group"] == "b"] == [None] * (len(rows) // 2)


def test_a_file_in_two_groups_is_refused(run_main, files, tmp_path):
    outcome = run_main("test", "--group", "a", files[0], "--group", "b", files[0], "--output", tmp_path / "out")
    assert outcome.status == 2 and "the same path is given twice" in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
