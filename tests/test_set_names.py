"""Sets have identities of their own, whatever they are called, and what one lacks costs the others nothing."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from processes import in_processes
from refusals import refused
from scripts import load_script

from data import benchmarks
from data.benchmarks import open_complete_eval_set, short_names, specs_of_bins, specs_of_folders
from data.loaders import batches, evaluation_loader
from data.pairs import read_pair_list
from data.transforms import to_network_input
from data.verification_bins import write_verification_bin
from evaluation import benchmark_run
from evaluation.embeddings import cache as embedding_cache
from evaluation.models_under_test import in_step
from evaluation.report.blocks import Table
from evaluation.report.reading import settings_of
from evaluation.report.section_summary import published
from meta import PUBLISHED_FIGURES, UserError
from models.weights import load_for_embedding
from training.validation import Validation
from utils.cli import as_plain, parse_config
from utils.distributed import DistInfo

ALONE = DistInfo(0, 1, torch.device("cpu"))


@pytest.fixture
def faces(tiny_faces, tmp_path) -> Path:
    """A copy of FG-NET and CALFW, to be damaged."""
    for folder in ("ID_processed_FGNET", "CALFW"):
        shutil.copytree(tiny_faces / folder, tmp_path / "faces" / folder)
    return tmp_path / "faces"


def test_a_folder_called_as_a_benchmark_costs_that_no_figure(run_test, faces, tmp_path):
    """4a: --identity-folders X/fgnet beside FG-NET: both are in results.json, and nobody is reported as the other."""
    people = faces / "ID_processed_FGNET"
    (tmp_path / "X" / "fgnet").mkdir(parents=True)
    for person in sorted(people.iterdir())[:2]:
        shutil.copytree(person, tmp_path / "X" / "fgnet" / person.name)
    folders = (tmp_path / "X" / "fgnet", shutil.copytree(people, tmp_path / "fgnet_2"))
    outcome, model = run_test(faces, "--benchmarks", "fgnet", "--identity-folders", *folders, "--names", "fgnet")
    assert outcome.status == 0, outcome.err
    results = model["results"]
    assert list(results) == ["fgnet", "X/fgnet", "fgnet_2"]
    assert [results[name]["num_identities"] for name in results] == [4, 2, 4]
    assert [results[name]["benchmark"] for name in results] == ["fgnet", None, None]
    assert "| FG-NET " in outcome.out and "| X/fgnet " in outcome.out
    page = (tmp_path / "results" / "report.html").read_text()
    assert "FG-NET: measured and published" in page and "fgnet_2: measured" not in page


def test_names_and_titles_of_benchmarks_are_taken_and_names_grow_until_they_differ(tmp_path, monkeypatch):
    """4a: two sets of one name are distinguished by as much of their paths as that takes."""
    monkeypatch.chdir(tmp_path)
    folders = [Path("a/fgnet"), Path("FG-NET"), Path("b/agedb"), Path("c/agedb"), Path("fgnet_2"), Path("x/lfw.bin")]
    of_folders = specs_of_folders(folders, None)
    names = [setting.name for setting in of_folders]
    assert names == ["a/fgnet", f"{tmp_path.name}/FG-NET", "b/agedb", "c/agedb", "fgnet_2", "lfw.bin"]
    bins = specs_of_bins([Path("lfw.bin"), Path("p/q.bin"), Path("q.bin")], beside=of_folders)
    assert [setting.name for setting in bins] == [f"{tmp_path.name}/lfw.bin", "p/q.bin", f"{tmp_path.name}/q.bin"]
    assert [setting.title for setting in bins] == [setting.name for setting in bins]
    refused(short_names, [Path("a"), tmp_path / "a"], match="given twice")


@pytest.mark.parametrize("flags", [("--benchmarks", "fgnet", "fgnet"),
                                   ("--benchmarks", "morph2", "--morph2-subjects", 4, 4)])  # fmt: skip
def test_a_setting_that_is_asked_for_twice_is_refused(run_test, tiny_faces, flags):
    """4a: one would take the other's place in results.json."""
    outcome, model = run_test(tiny_faces, *flags)
    assert outcome.status == 2 and "asked for twice" in outcome.err and outcome.err.count("\n") == 1 and not model


def test_a_bin_is_reported_as_the_set_of_its_whole_name_only():
    """4a: calfw_old.bin is not CALFW, and no .bin is FG-NET."""
    published = ("lfw", "agedb_30", "calfw")
    for name in (*published, "calfw_old", "fgnet", "morph2_3000"):
        (setting,) = specs_of_bins([Path("some") / f"{name}.bin"])
        assert setting.published_as == (name if name in published else None)


def published_beside(results: dict[str, dict]) -> dict[str, str]:
    """Title of the table of published figures -> its text, of a report with these results."""
    report = {"models": [{"name": "a", "results": results}], "published": [as_plain(one) for one in PUBLISHED_FIGURES]}
    tables = [block for block in published(report, settings_of(report)) if isinstance(block, Table)]
    return {table.caption: str(table.rows) for table in tables}


def test_published_figures_stand_beside_their_benchmark_alone():
    """4a: a folder fgnet_2 (or fgnet) gets no published FG-NET figures, FG-NET itself does."""
    rank1 = {"leave_one_out": {"concatenate": {"rank1_percent": 50.0}}}
    own = {name: {"title": name, "benchmark": None} | rank1 for name in ("fgnet_2", "X/fgnet", "fgnet")}
    assert not [caption for caption in published_beside(own) if "measured" in caption]
    both = own | {"fgnet": {"title": "FG-NET", "benchmark": "fgnet"} | rank1}
    (caption,) = [caption for caption in published_beside(both) if "measured" in caption]
    assert caption == "FG-NET: measured and published"
    assert "DAL" in published_beside(both)[caption] and "fgnet_2" not in published_beside(both)[caption]


def test_a_validation_prints_each_set_under_its_own_name(tiny_faces, weights, tmp_path, capsys):
    """4a: the figures of calfw_old.bin are not printed under CALFW while training."""
    folder = tiny_faces / "CALFW"
    pairs = read_pair_list(folder / "txts" / "CALFW_img_pairs_labels.txt", folder / "processed_CALFW_2")
    write_verification_bin(pairs, tmp_path / "calfw_old.bin", reencode=True)
    opened = {"calfw": open_complete_eval_set("calfw", tiny_faces),
              "calfw_old": open_complete_eval_set(str(tmp_path / "calfw_old.bin"), tiny_faces)}  # fmt: skip
    validation = Validation(opened, ALONE, lambda of: batches(evaluation_loader(of, 64)), to_network_input)
    log = SimpleNamespace(event=lambda *args, **kwargs: None, figure=lambda *args: None)
    validation.run(load_for_embedding(weights)[0], 3, log)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("validation at step 3, ")]
    figures = ["accuracy_percent", "auc_percent", "eer_percent"]  # too few impostors for a TAR
    for name, line in zip(opened, lines, strict=True):
        _, reply = line.split(f", {name}: ")
        assert [figure.split(" ")[0] for figure in reply.split(", ")] == figures


@pytest.mark.parametrize("keep", [(), ("--no-keep-embeddings",)], ids=["kept", "not kept"])
def test_a_dangling_link_ends_its_benchmark_only(run_test, faces, tiny_faces, keep):
    """5a: FG-NET did not run and says why, CALFW did; the status is 2. So it is with a link among its distractors."""
    link = min((faces / "ID_processed_FGNET").rglob("*.JPG"))
    link.unlink()
    link.symlink_to("nowhere.jpg")
    for root, more in ((faces, ()), (tiny_faces, ("--distractors", link.parent.parent))):
        outcome, model = run_test(root, "--benchmarks", "fgnet", "calfw", *keep, *more)
        why_not = model["did_not_run"]
        assert outcome.status == 2 and list(model["results"]) == ["calfw"] and list(why_not) == ["fgnet"]
        assert str(link) in why_not["fgnet"] and "No such file" in why_not["fgnet"]
        assert outcome.err.count("did not run") == 1 and "Traceback" not in outcome.err


def test_a_folder_that_cannot_be_listed_ends_its_benchmark_only(run_test, faces, monkeypatch):
    """5a: an error of the disk while a benchmark is opened is a sentence of that benchmark."""
    opening = benchmark_run.open_eval_set

    def fails(setting, *args):
        if setting.name == "fgnet":
            raise OSError(errno.EIO, os.strerror(errno.EIO), "some/folder")
        return opening(setting, *args)

    monkeypatch.setattr(benchmark_run, "open_eval_set", fails)
    outcome, model = run_test(faces, "--benchmarks", "fgnet", "calfw")
    assert outcome.status == 2 and list(model["results"]) == ["calfw"]
    assert "some/folder" in model["did_not_run"]["fgnet"]


def test_a_full_disk_or_a_cache_that_nobody_may_write_only_means_that_distractors_are_not_cached(
    run_test, tiny_faces, tmp_path, monkeypatch
):
    """5a: without room for the distractors' embeddings they are in memory, with the same figures, and it is said."""
    flags = ("--benchmarks", "fgnet", "--distractors", tiny_faces / "CALFW" / "processed_CALFW_2", "--cache-folder")
    kept = run_test(tiny_faces, *flags, tmp_path / "cache")[1]
    assert len(list((tmp_path / "cache").glob("distractors_*.npy"))) == 1
    shutil.rmtree(tmp_path / "cache")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    places = [tmp_path / "cache", *(["/proc/cache"] if os.path.isdir("/proc/self") else [])]  # not even root may write
    monkeypatch.setattr(embedding_cache.os, "posix_fallocate", full)
    for place, words in zip(places, ("No space left", "can't be written"), strict=False):
        outcome, model = run_test(tiny_faces, *flags, place)
        assert outcome.status == 0 and outcome.out.count("embeddings are not cached") == 1 and words in outcome.out
        assert model["results"] == kept["results"] and not list(tmp_path.glob("cache/distractors_*"))


def test_a_filled_array_is_kept_and_an_unfilled_one_goes(tmp_path):
    """5a: new_array leaves nothing half made, and two runs do not write into one file."""
    cache = embedding_cache.EmbeddingCache(tmp_path, print)
    with pytest.raises(UserError), cache.new_array({"of": 1}, (2, 3)) as array:
        raise UserError("a picture is broken")
    assert not list(tmp_path.iterdir()) and cache.load_array({"of": 1}) is None
    with cache.new_array({"of": 1}, (2, 3)) as array:
        (part,) = tmp_path.iterdir()
        assert str(os.getpid()) in part.name
        array[:] = 7
    assert np.array_equal(cache.load_array({"of": 1}), np.full((2, 3), 7)) and len(list(tmp_path.iterdir())) == 1


def _test_and_tell(flags: list[str]) -> None:
    """test.py in this process, which ends with 0; its status is printed."""
    script = load_script("test")

    def gone(*args, **kwargs):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "gone.jpg")

    if os.environ["RANK"] == "1":  # a folder that is there for the first process alone
        benchmarks.index_identity_folders = gone
    print(f"status {script.test(parse_config(script.TestConfig, flags))}", flush=True)


def test_processes_agree_on_what_did_not_run(faces, weights, tmp_path):
    """5a: where one of two processes fails neither waits for the other: FG-NET did not run, CALFW did."""
    flags = ("--weights", weights, "--face-dataset", faces, "--output", tmp_path / "out", "--workers", 0, "--device",
             "cpu", "--no-analysis", "--benchmarks", "fgnet", "calfw")  # fmt: skip
    ended = in_processes(2, _test_and_tell, list(map(str, flags)))
    assert ended.statuses == [0, 0] and ended.out.count("status 2") == 2, ended.err
    (model,) = json.loads((tmp_path / "out" / "results.json").read_text())["models"]
    assert list(model["results"]) == ["calfw"] and "gone.jpg" in model["did_not_run"]["fgnet"]


def test_what_a_file_system_raises_is_one_sentence(tmp_path):
    """5a: `in_step` gives it."""
    refused(in_step, lambda: os.stat(tmp_path / "a.jpg"), ALONE, match=r"a\.jpg.*check that path")
