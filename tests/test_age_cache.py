"""data/age_cache.py: what is written is read, what is not known is None, caches of other weights go."""

import fcntl
import pickle
import shutil

import numpy as np
import pytest

from data.age_cache import BYTES_A_PICTURE, DATA, DESCRIPTION, AgeCache, cache_bytes, prepare_cache
from meta import UserError

N = 9
OF = {"weights": "w", "pictures": "p"}


@pytest.fixture
def told():
    return []


@pytest.fixture
def cache(tmp_path, told) -> AgeCache:
    return prepare_cache(tmp_path, "faces_age_features_1", OF, N, told.append)


def features(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 2, 512)).astype(np.float32)


def test_the_size_is_that_of_the_field_and_said_beforehand(told, cache):
    assert round(cache_bytes(5_179_510) / 1e9, 1) == 10.6 and cache_bytes(N) == N * BYTES_A_PICTURE == N * 2 * 512 * 2
    assert "0.0 GB when complete" in told[0]


def test_what_was_written_is_read_in_16_bits_and_the_rest_is_not_known(cache):
    rows = features(3)
    cache.write(np.array([7, 0, 4]), rows)
    for row, i in enumerate((7, 0, 4)):
        assert np.array_equal(cache.read(i), rows[row].astype(np.float16))
    assert cache.read(1) is None and cache.unknown().tolist() == [1, 2, 3, 5, 6, 8]


def test_a_row_that_only_half_reached_the_disk_is_not_known(cache):
    rows = features(1)
    rows[0, 1, 256:] = 0  # one disk sector
    cache.write(np.array([2]), rows)
    assert cache.read(2) is None and 2 in cache.unknown()


def test_a_worker_gets_a_copy_that_sees_what_is_written_later(cache):
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.read(3) is None
    cache.write(np.array([3]), features(1))
    assert np.array_equal(copy.read(3), cache.read(3))


def test_a_value_beyond_16_bits_is_refused(cache):
    with pytest.raises(UserError, match="--age-cache off"):
        cache.write(np.array([0]), features(1) * 1e6)
    assert cache.read(0) is None


def test_the_same_cache_is_taken_up_again(tmp_path, cache, told):
    cache.write(np.array([5]), features(1))
    again = prepare_cache(tmp_path, "faces_age_features_1", OF, N, told.append)
    assert again.read(5) is not None and "earlier epochs or runs" in told[-1]


@pytest.mark.parametrize("fault", ["weights", "size", "description", "no data"])
def test_a_cache_of_something_else_or_damaged_begins_anew(tmp_path, cache, told, fault):
    cache.write(np.array([5]), features(1))
    of, folder = dict(OF), tmp_path / "faces_age_features_1"
    if fault == "weights":
        of["weights"] = "other"
    elif fault == "size":
        (folder / DATA).write_bytes(b"x")
    elif fault == "description":
        (folder / DESCRIPTION).write_text("{")
    else:
        (folder / DATA).unlink()
    again = prepare_cache(tmp_path, "faces_age_features_1", of, N, told.append)
    assert len(again.unknown()) == N


def test_caches_of_other_weights_go_unless_in_use_and_those_of_other_sets_stay(tmp_path, told):
    for name in ("faces_age_features_2", "faces_age_features_3", "others_age_features_4"):
        (tmp_path / name).mkdir()
        (tmp_path / name / DESCRIPTION).write_text("{}")
    with open(tmp_path / "faces_age_features_3" / DESCRIPTION) as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        prepare_cache(tmp_path, "faces_age_features_1", OF, N, told.append)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["faces_age_features_1", "faces_age_features_3", "others_age_features_4"]
    assert any("faces_age_features_2" in sentence for sentence in told)


def test_without_room_or_a_place_training_goes_on_without(tmp_path, told, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1000))
    assert prepare_cache(tmp_path, "faces_age_features_1", OF, N, told.append) is None
    assert "--cache-folder" in told[-1] and not (tmp_path / "faces_age_features_1" / DATA).exists()
    (tmp_path / "file").touch()
    assert prepare_cache(tmp_path / "file", "faces_age_features_1", OF, N, told.append) is None
    assert "--cache-folder" in told[-1]
