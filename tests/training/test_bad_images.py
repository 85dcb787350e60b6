"""Bad pictures in training: an error, or replaced alike by every run, worker and process, and reported as a value."""

import contextlib
import gc
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.faces import index_identity_folders
from data.loaders import MAX_TRIES, EpochSampler, batches, evaluation_loader, training_loader
from data.transforms import decode_face
from meta import FILENAME_PATTERNS, UserError

NUM_FACES = 12
BAD = (3, 4, 11)  # two neighbours, and the last, whose next is the first
REPLACEMENT = {3: 5, 4: 5, 11: 0}


def write_faces(folder, num_faces, bad):
    for i in range(num_faces):
        person = folder / f"person{i // 4:03d}"
        person.mkdir(parents=True, exist_ok=True)
        path = person / f"{i:03d}_age_{5 * i % 90}.png"
        if i in bad:
            path.write_bytes(b"no picture")
        else:
            pixels = np.random.RandomState(i).randint(0, 256, (112, 112, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return index_identity_folders(folder, FILENAME_PATTERNS["ms1mv3"])


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"), NUM_FACES, BAD)


def epoch(index, batch_size, rank=0, world_size=1, **how):
    sampler = EpochSampler(len(index), batch_size, 3, rank, world_size)
    return list(batches(training_loader(index, sampler, on_bad_image="skip", **how)))


def replaced(indices):
    return [REPLACEMENT.get(i, i) for i in indices]


def test_a_bad_picture_gives_its_place_to_the_next_readable_one(faces):
    for batch_size in (4, NUM_FACES):
        for number, batch in enumerate(epoch(faces, batch_size)):
            drawn = EpochSampler(NUM_FACES, batch_size, seed=3).indices_of(0, number).tolist()
            assert batch.indices.tolist() == replaced(drawn)
            assert batch.identities.tolist() == faces.identities[batch.indices].tolist()
            assert batch.age_groups.tolist() == faces.age_groups[batch.indices].tolist()
            for image, i in zip(batch.images, batch.indices, strict=True):
                assert torch.equal(image, decode_face(faces.path(int(i))))


def test_failures_name_every_picture_tried_in_vain_with_its_reason(faces):
    (batch,) = epoch(faces, NUM_FACES)
    assert isinstance(batch.failures, tuple)
    reason = "it is not an image (JPEG, PNG, BMP, WEBP)"
    # 4 stands there twice: in its own place, and on the way from 3 to 5.
    assert sorted(batch.failures) == [f"{faces.path(i)!r}: {reason}" for i in (3, 4, 4, 11)]


def test_workers_processes_and_runs_replace_alike(faces):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    alone = epoch(faces, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    for other in (epoch(faces, 4), epoch(faces, 4, workers=2)):
        for ours, theirs in zip(alone, other, strict=True):
            assert ours.failures == theirs.failures
            assert all(torch.equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))
    shares = [epoch(faces, 2, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, first, second in zip(alone, *shares, strict=True):
        assert whole.indices.tolist() == first.indices.tolist() + second.indices.tolist()
        assert whole.failures == first.failures + second.failures


def test_pinned_memory_keeps_failures_a_tuple(faces):
    (batch,) = epoch(faces, NUM_FACES, pin_memory=torch.cuda.is_available())
    assert isinstance(batch.failures, tuple)
    listed = batch._replace(failures=list(batch.failures))  # what torch's pinning makes of it
    (again,) = batches(DataLoader([listed], batch_size=None, collate_fn=lambda batch: batch))
    assert again.failures == batch.failures


def test_without_skip_and_in_evaluation_a_bad_picture_is_an_error(faces):
    for loader in (training_loader(faces, EpochSampler(NUM_FACES, 4, seed=3)), evaluation_loader(faces, 4)):
        with pytest.raises(UserError, match="cannot be decoded, it is not an image"):
            list(batches(loader))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_search_for_a_replacement_ends_with_an_error(tmp_path, workers):
    index = write_faces(tmp_path / "few", 5, bad=range(5))
    with pytest.raises(
        UserError, match=r"^5 pictures one after another cannot be decoded, .*check the folder"
    ) as caught:
        epoch(index, 2, workers=workers)
    assert str(tmp_path / "few") in str(caught.value)
    assert "\n" not in str(caught.value)
    del caught  # it holds this frame, so only the garbage collector would end the workers, see `batches`

    index = write_faces(tmp_path / "many", MAX_TRIES + 20, bad=range(10, 10 + MAX_TRIES))
    with pytest.raises(UserError, match=rf"^{MAX_TRIES} pictures one after another cannot be decoded, from '.*010_age"):
        epoch(index, MAX_TRIES + 20, workers=workers)


def test_one_less_than_the_limit_is_found(tmp_path):
    index = write_faces(tmp_path, MAX_TRIES + 20, bad=range(10, 9 + MAX_TRIES))
    (batch,) = epoch(index, MAX_TRIES + 20)
    assert set(batch.indices.tolist()) == set(range(10)) | set(range(9 + MAX_TRIES, 20 + MAX_TRIES))
    assert len(set(batch.failures)) == MAX_TRIES - 1


def test_workers_end_with_the_error_and_do_not_wait_for_the_garbage_collector(faces):
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(UserError):
            list(batches(training_loader(faces, EpochSampler(NUM_FACES, 4, seed=3), workers=2)))
        assert multiprocessing.active_children() == []
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------ which images and whose


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_sampler_names_the_images_of_any_whole_batch(world_size):
    samplers = [EpochSampler(100, 4, 5, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(2)
    shares = [list(sampler) for sampler in samplers]
    samplers[0].set_epoch(7, start=3)  # where the sampler stands does not matter
    for batch in range(samplers[0].num_batches):
        joined = sum((share[batch] for share in shares), [])
        assert samplers[0].indices_of(2, batch).tolist() == joined
    assert samplers[0].indices_of(2, 0).dtype == np.int64
    for outside in (-1, samplers[0].num_batches):
        with pytest.raises(IndexError):
            samplers[0].indices_of(0, outside)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (3, 2), (20, 0)])
def test_evaluation_gives_each_image_to_one_process(tmp_path_factory, world_size, workers):
    index = write_faces(tmp_path_factory.mktemp("faces"), 10, bad=())
    seen = []
    for rank in range(world_size):
        loader = evaluation_loader(index, 3, workers, rank=rank, world_size=world_size)
        own = [i for batch in batches(loader) for i in batch.indices.tolist()]
        assert own == list(range(rank, 10, world_size))
        seen += own
    assert sorted(seen) == list(range(10))
