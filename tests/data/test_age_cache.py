"""data/age_cache.py: what is written is read, what is not known is None, caches of other weights stand beside it.

And how train.py uses it in one process; several machines are for test_several_machines.py.
"""

import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from refusals import refused
from scripts import TINY, load_script
from test_train import same_weights, training_set

from data.age_cache import BYTES_A_PICTURE, DATA, DESCRIPTION, AgeCache, cache_bytes, prepare_cache
from data.check.findings import is_wrong, report_lines
from data.check.run import check
from data.loaders import collate
from models.iefp import IEFP
from models.iresnet import IResNet
from training.age_feature_cache import fingerprint, known_age_features, open_age_cache
from training.setup import open_pictures
from utils.distributed import DistInfo
from utils.files import in_bytes

N = 9
OF = {"weights": "w", "pictures": "p"}


@pytest.fixture
def reply():
    return []


@pytest.fixture
def cache(tmp_path, reply) -> AgeCache:
    return prepare_cache(tmp_path, "faces_age_features", OF, N, reply.append)


def features(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 2, 512)).astype(np.float32)


def test_the_size_is_that_of_the_field_and_said_beforehand(reply, cache):
    assert round(cache_bytes(5_179_510) / 1e9, 1) == 10.6 and cache_bytes(N) == N * BYTES_A_PICTURE == N * 2 * 512 * 2
    assert "18.4 kB when complete" in reply[0] and in_bytes(cache_bytes(5_179_510)) == "10.6 GB"


def test_what_was_written_is_read_in_16_bits_and_the_rest_is_not_known(tmp_path, cache, reply):
    rows, copy = features(3), pickle.loads(pickle.dumps(cache))  # as a worker gets it
    cache.write(np.array([7, 0, 4]), rows)
    again = prepare_cache(tmp_path, "faces_age_features", OF, N, reply.append)
    assert "earlier epochs or runs" in reply[-1]
    for each in (cache, copy, again):
        for row, i in enumerate((7, 0, 4)):
            assert np.array_equal(each.read(i), rows[row].astype(np.float16))
        assert each.read(1) is None and each.unknown().tolist() == [1, 2, 3, 5, 6, 8]


def test_a_row_that_only_half_reached_the_disk_is_not_known(cache):
    rows = features(1)
    rows[0, 1, 256:] = 0  # one disk sector
    cache.write(np.array([2]), rows)
    assert cache.read(2) is None and 2 in cache.unknown()


def test_a_value_beyond_16_bits_and_a_disk_that_fills_up_are_one_sentence(cache, monkeypatch):
    refused(cache.write, np.array([0]), features(1) * 1e6, match="--age-cache off")
    monkeypatch.setattr(os, "pwrite", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    refused(cache.write, np.array([0]), features(1), match="No space left on device.*--age-cache off")
    assert cache.read(0) is None


FAULTS = {"size": (DATA, b"x"), "description": (DESCRIPTION, b"{"), "no size": (DESCRIPTION, b'{"num_images": null}'),
          "no data": (DATA, None)}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_cache_begins_anew(tmp_path, cache, reply, fault):
    cache.write(np.array([5]), features(1))
    name, content = FAULTS[fault]
    (cache.folder / name).unlink()
    if content is not None:
        (cache.folder / name).write_bytes(content)
    again = prepare_cache(tmp_path, "faces_age_features", OF, N, reply.append)
    assert again.folder == cache.folder and len(again.unknown()) == N
    assert os.listdir(tmp_path) == [cache.folder.name]


@pytest.mark.parametrize("other", ["weights", "pictures", "precision"])
def test_caches_of_different_keys_stand_side_by_side_in_use_or_not(tmp_path, cache, reply, other):
    """2d, 11: a run with other age weights, pictures or precision removes nothing, and both are taken up again."""
    cache.write(np.array([5]), features(1))
    beside = prepare_cache(tmp_path, "faces_age_features", OF | {other: "other"}, N, reply.append)
    beside.write(np.array([5]), features(1, seed=1))
    for of, own in ((OF, 0), (OF | {other: "other"}, 1)):
        again = prepare_cache(tmp_path, "faces_age_features", of, N, reply.append)
        assert np.array_equal(again.read(5), features(1, own)[0].astype(np.float16))
    assert not any("dropped" in sentence for sentence in reply) and len(list(tmp_path.iterdir())) == 2


def test_of_two_runs_that_make_the_same_cache_at_once_the_second_takes_the_firsts(tmp_path, reply, monkeypatch):
    """2d: what the first has written by then stays."""
    rename = Path.rename

    def overtaken(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        prepare_cache(tmp_path, "faces_age_features", OF, N, reply.append).write(np.array([5]), features(1))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    second = prepare_cache(tmp_path, "faces_age_features", OF, N, reply.append)
    assert second.read(5) is not None and os.listdir(tmp_path) == [second.folder.name]


def test_without_room_or_a_place_training_goes_on_without(tmp_path, reply, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    assert prepare_cache(tmp_path / "cache", "faces_age_features", OF, N, reply.append) is None
    assert "18.4 kB" in reply[-1] and "--cache-folder" in reply[-1] and not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert prepare_cache(tmp_path / "file", "faces_age_features", OF, N, reply.append) is None
    assert "--cache-folder" in reply[-1]


def test_check_lists_caches_with_size_date_and_the_command_that_removes_them(tmp_path, reply):
    """11: nothing deletes a cache but a command that says so, and prepare.py check gives it."""
    root = tmp_path / "face dataset"
    root.mkdir()
    assert [found.what for found in check(root, ["caches"])] == [f"nothing is kept below {root}"]
    for place in (root, root / "ms1mv3"):
        cache = prepare_cache(place / ".iefp_cache", "faces_age_features", OF, N, reply.append)
        cache.write(np.arange(3), features(3))
        os.utime(cache.folder / DATA, (1_600_000_000, 1_600_000_000))
    (root / ".iefp_cache" / "embeddings_0123.npz").write_bytes(bytes(5000))
    findings = check(root, ["caches"])
    assert not is_wrong(findings) and len(findings) == 3
    shown = "\n".join(report_lines(findings))
    assert "age features of 9 pictures" in shown and "18.4 kB when complete, last written 2020-09-13" in shown
    assert "1 files of embeddings and lists of pictures" in shown
    for found in findings:
        assert os.system(found.advice.removeprefix("can go: ")) == 0
    assert [path.name for path in root.glob("**/*") if path.is_file()] == []


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many pictures the frozen branch got in each of its passes."""
    sizes, compute = [], IEFP.age_features
    monkeypatch.setattr(IEFP, "age_features", lambda self, images: sizes.append(len(images)) or compute(self, images))
    return sizes


def test_known_rows_of_a_mixed_batch_are_used_and_only_the_others_computed(cache):
    """2a: one row that was not known had the features of all others thrown away."""
    known = features(2)
    cache.write(np.array([4, 7]), known)
    indices, asked = [7, 1, 4, 0], []

    def age_features(images):  # (N, 512): the mean of each image, whatever way round it is
        asked.append(len(images))
        return images.mean(dim=(1, 2, 3))[:, None].expand(-1, 512)

    items = [(torch.full((3, 2, 2), k, dtype=torch.uint8), 0, 0, k, 20, cache.read(k), ()) for k in indices]
    run = SimpleNamespace(age_cache=cache, stage=SimpleNamespace(age_features=age_features))
    faces, flips = collate(items), torch.tensor([True, False, False, True])
    views = known_age_features(run, faces, faces.images.float() + 1, flips)
    assert asked == [2, 2]  # both views of the two others
    assert np.array_equal(views[[2, 0]].numpy(), known.astype(np.float16))
    assert (views[1] == 2).all() and (views[3] == 1).all()
    assert [k for k in range(N) if cache.read(k) is not None] == [0, 1, 4, 7]
    assert np.array_equal(cache.read(1), views[1].numpy())


def test_a_run_killed_while_it_learns_age_features_goes_on_to_the_bit(train_identity, tmp_path, monkeypatch, asked):
    """2a: of batches that are known in part the same rows are computed again, among the same others.

    Three of the 18 pictures come in no batch of the first epoch, so that some of the second are known in part.
    """
    flags = ("--epochs", 3, "--batch-size", 5, "--save-every", 2)
    whole = train_identity(tmp_path / "whole", *flags, "--cache-folder", tmp_path / "cache_of_whole")
    assert whole.status == 0 and any(size < 5 for size in asked), asked

    stage, steps = load_script("train").IdentityStage, []
    step_of_stage = stage.step

    def stop_at_the_sixth(self, *batch):
        steps.append(1)
        if len(steps) == 6:  # the last of the second epoch; step 5 was after the checkpoint of step 4
            raise KeyboardInterrupt
        return step_of_stage(self, *batch)

    flags = (*flags, "--cache-folder", tmp_path / "cache_of_stopped")
    monkeypatch.setattr(stage, "step", stop_at_the_sixth)
    assert train_identity(tmp_path / "stopped", *flags).status == 130
    monkeypatch.setattr(stage, "step", step_of_stage)
    outcome = train_identity(tmp_path / "stopped", *flags)
    assert outcome.status == 0 and "4 steps done" in outcome.out
    assert same_weights(tmp_path / "whole" / "iefp.pth", tmp_path / "stopped" / "iefp.pth")


@pytest.mark.parametrize("cache", ["off", "ahead"])
def test_with_accumulation_the_frozen_branch_gets_one_part_of_a_batch_at_a_time(train_identity, tmp_path, asked, cache):
    """7d: it got batch / accumulation^2 pictures where nothing was kept."""
    flags = ("--epochs", 1, "--batch-size", 18, "--accumulation", 3, "--age-cache", cache)
    assert train_identity(tmp_path / "run", *flags, "--cache-folder", tmp_path / "cache").status == 0
    assert asked == [6] * (3 if cache == "off" else 6)


@pytest.fixture
def opened(tiny_faces, tmp_path):
    """Opens the age cache of a copy of the training set as train.py does; gives it and the pictures' folder."""
    folder = tmp_path / "faces"
    shutil.copytree(training_set(tiny_faces), folder)
    train, process = load_script("train"), DistInfo(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    model = SimpleNamespace(backbone_ae=IResNet(TINY))

    def open_it(**settings) -> AgeCache:
        config = train.TrainConfig(train_data=folder, cache_folder=tmp_path / "cache", **settings)
        return open_age_cache(config, model, open_pictures(config, process), process)

    return open_it, folder


def test_pictures_that_are_replaced_in_place_get_features_of_their_own(opened):
    """3b: the cache went by names alone, and gave the features of the pictures that were there before."""
    open_it, folder = opened
    before = open_it()
    before.write(np.array([0]), features(1))
    first, second = sorted(folder.glob("*/*.jpg"))[:2]
    shutil.copyfile(second, first)  # in place: no folder's time changes
    after = open_it()
    assert after.folder != before.folder and after.read(0) is None and before.read(0) is not None
    assert open_it().folder == after.folder


def test_another_precision_gets_a_cache_of_its_own_and_none_goes(opened):
    """11: two runs of different precision took turns deleting each other's cache.

    Shared, a run in fp32 would compute with what one in bf16 left behind, and not repeat.
    """
    open_it, _ = opened
    caches = [open_it(precision=precision) for precision in ("fp32", "bf16")]
    for number, cache in enumerate(caches):
        cache.write(np.array([0]), features(1, number))
    for number, precision in enumerate(("fp32", "bf16")):
        assert np.array_equal(open_it(precision=precision).read(0), features(1, number)[0].astype(np.float16))


def test_a_picture_that_is_missing_is_for_its_reader_to_find(opened):
    """5a, for training: a link that leads nowhere is no error of the cache's key."""
    open_it, folder = opened
    before, first = open_it(), sorted(folder.glob("*/*.jpg"))[0]
    first.unlink()
    first.symlink_to("nowhere")
    assert open_it().folder != before.folder


def test_the_key_knows_what_the_weights_do_not_show_of_the_network():
    """3a, for age features: the sign of the purification unit is in no tensor."""
    plus, minus = (IResNet(TINY, f"x_{sign}_relu_linear_bn") for sign in ("plus", "minus"))
    minus.load_state_dict(plus.state_dict())
    assert fingerprint(plus) != fingerprint(minus)
