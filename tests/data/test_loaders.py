"""data/transforms.py and data/loaders.py: pixels as torchvision makes them, batches in an order that repeats."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from data.faces import index_identity_folders
from data.loaders import EpochSampler, batches, evaluation_loader, training_loader
from data.transforms import COLOUR, CROP, augment, decode_face, hflip, random_stream, to_network_input
from meta import FILENAME_PATTERNS, UserError

NUM_FACES = 14


def picture(seed, size=(112, 112), mode="RGB"):
    """Noise: it shows every difference of filter, order and orientation."""
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def jpeg_bytes(image, **how):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **how)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """14 faces of 3 identities with ages, an index over them."""
    folder = tmp_path_factory.mktemp("faces")
    for i in range(NUM_FACES):
        (folder / f"person{i % 3}").mkdir(exist_ok=True)
        picture(i).save(folder / f"person{i % 3}" / f"{i:02d}_age_{5 * i}.png")
    return index_identity_folders(folder, FILENAME_PATTERNS["ms1mv3"])


@pytest.mark.parametrize("size", [(112, 112), (256, 256), (90, 131), (40, 40)])
def test_decoded_and_scaled_pixels_are_torchvisions(tmp_path, size):
    transforms = pytest.importorskip("torchvision.transforms")
    picture(1, size).save(tmp_path / "face.jpg")
    cubic, halves = transforms.InterpolationMode.BICUBIC, (0.5, 0.5, 0.5)
    published = transforms.Compose([transforms.Resize((112, 112), interpolation=cubic), transforms.ToTensor(),
                                    transforms.Normalize(halves, halves)])  # fmt: skip
    expected = published(Image.open(tmp_path / "face.jpg").convert("RGB"))
    face = decode_face(tmp_path / "face.jpg")
    assert (face.dtype, face.shape, face.is_contiguous()) == (torch.uint8, (3, 112, 112), True)
    torch.testing.assert_close(to_network_input(face[None])[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_pictures_of_every_common_mode_become_rgb(tmp_path, mode):
    path = tmp_path / ("face.jpg" if mode == "CMYK" else "face.png")
    picture(2, (112, 112), mode).save(path)
    with Image.open(path) as stored:
        assert stored.mode == mode
        assert np.array_equal(decode_face(path).permute(1, 2, 0).numpy(), np.array(stored.convert("RGB")))


def test_path_bytes_and_open_file_give_the_same_face(tmp_path):
    path = tmp_path / "face.jpg"
    path.write_bytes(jpeg_bytes(picture(4)))
    expected = decode_face(path)
    assert torch.equal(decode_face(str(path)), expected)
    assert torch.equal(decode_face(path.read_bytes()), expected)
    with open(path, "rb") as file:
        assert torch.equal(decode_face(file), expected)
    assert decode_face(path, size=64).shape == (3, 64, 64)


def assert_is_one_sentence(error, path):
    message = str(error)
    assert str(path) in message
    assert "Traceback" not in message
    assert "\n" not in message
    assert message.endswith("replace it or leave it out.")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_network_input_has_the_type_and_layout_asked_for(dtype, channels_last):
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    before = images.clone()
    network_input = to_network_input(images, channels_last, dtype)
    assert network_input.dtype == dtype
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert network_input.is_contiguous(memory_format=memory_format)
    exact = (images.double() - 127.5) / 127.5
    # Rounded once: half a unit in the last place, in the short types too.
    torch.testing.assert_close(network_input.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=0)
    assert torch.equal(images, before)


def test_hflip_is_torchvisions_of_the_images_that_are_named():
    transforms = pytest.importorskip("torchvision.transforms")
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert torch.equal(hflip(images), transforms.functional.hflip(images)) and not torch.equal(hflip(images), images)
    flipped = hflip(images, torch.tensor([True, False, True]))
    assert torch.equal(flipped[::2], hflip(images[::2])) and torch.equal(flipped[1], images[1])


def epoch_of(sampler, epoch, start=0):
    sampler.set_epoch(epoch, start)
    return list(sampler)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_same_whole_batches_as_one_process(world_size):
    alone = epoch_of(EpochSampler(100, 4 * world_size, seed=5), epoch=2)
    shares = [epoch_of(EpochSampler(100, 4, 5, rank, world_size), epoch=2) for rank in range(world_size)]
    joined = [sum(batch_shares, []) for batch_shares in zip(*shares, strict=True)]
    assert joined == alone
    seen = sum(alone, [])
    assert len(alone) == 100 // (4 * world_size)
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(range(100))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    sampler = EpochSampler(60, 10, seed=0)
    first = epoch_of(sampler, 0)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    assert epoch_of(sampler, 0) == first == epoch_of(EpochSampler(60, 10, seed=0), 0)
    others = [first, epoch_of(sampler, 1), epoch_of(EpochSampler(60, 10, seed=1), 0)]
    assert len({str(order) for order in others}) == 3  # seed 0, epoch 1 is not seed 1, epoch 0 either
    assert first[0] != list(range(10))


def test_a_resumed_epoch_goes_on_where_it_stopped_and_the_next_is_whole():
    sampler = EpochSampler(60, 8, seed=0)
    whole = epoch_of(sampler, 3)
    assert epoch_of(sampler, 3, start=5) == whole[5:]
    assert (len(sampler), sampler.num_batches) == (2, 7)
    assert len(epoch_of(sampler, 4)) == len(sampler) == 7
    assert epoch_of(sampler, 4, start=7) == []


def test_fewer_images_than_one_whole_batch_are_refused():
    refused(EpochSampler, 14, batch_size=15, seed=0, match=r"14 images do not fill one batch of 15: lower --batch-size")
    with pytest.raises(UserError, match=r"one batch of 16 \(8 on each of 2 processes\): lower --batch-size"):
        EpochSampler(14, batch_size=8, seed=0, world_size=2)
    assert len(EpochSampler(14, batch_size=14, seed=0)) == 1


def assert_same_batches(ours, theirs):
    assert len(ours) == len(theirs)
    for our_batch, their_batch in zip(ours, theirs, strict=True):
        for our_tensor, their_tensor in zip(our_batch[:4], their_batch[:4], strict=True):
            assert torch.equal(our_tensor, their_tensor)
        assert our_batch.failures == their_batch.failures == ()


def test_evaluation_gives_every_face_once_in_order(faces):
    loaded = list(batches(evaluation_loader(faces, batch_size=4)))
    assert [len(batch.images) for batch in loaded] == [4, 4, 4, 2]
    images, identities, age_groups, indices = (torch.cat(column) for column in list(zip(*loaded, strict=True))[:4])
    assert images.dtype == torch.uint8
    assert images.shape == (NUM_FACES, 3, 112, 112)
    without_ages = index_identity_folders(faces.root, None)
    assert next(batches(evaluation_loader(without_ages, batch_size=3))).age_groups.tolist() == [-1, -1, -1]
    assert indices.tolist() == list(range(NUM_FACES))
    assert identities.tolist() == faces.identities.tolist()
    assert age_groups.tolist() == faces.age_groups.tolist()
    for i in range(NUM_FACES):
        assert torch.equal(images[i], decode_face(faces.path(i)))


def test_workers_change_nothing(faces):
    evaluated, trained = [], []
    for workers in (0, 2):
        evaluated.append(list(batches(evaluation_loader(faces, 4, workers))))
        sampler = EpochSampler(NUM_FACES, 4, seed=1)
        loader = training_loader(faces, sampler, workers=workers)
        trained.append([])
        for epoch in (0, 1):  # the second with the workers that the first has started
            sampler.set_epoch(epoch)
            trained[-1] += batches(loader)
    assert_same_batches(*evaluated)
    assert_same_batches(*trained)
    assert len(trained[0]) == 6


def test_training_batches_hold_the_faces_that_the_sampler_names(faces):
    sampler = EpochSampler(NUM_FACES, 4, seed=1, rank=1, world_size=2)
    loader = training_loader(faces, sampler)
    sampler.set_epoch(6)
    (batch,) = batches(loader)  # 14 images, whole batches of 8
    assert batch.indices.tolist() == list(sampler)[0]
    assert batch.identities.tolist() == faces.identities[batch.indices].tolist()
    for image, i in zip(batch.images, batch.indices, strict=True):
        assert torch.equal(image, decode_face(faces.path(int(i))))


def test_loading_draws_nothing_from_the_global_generator(faces):
    state = torch.get_rng_state()
    loader = training_loader(faces, EpochSampler(NUM_FACES, 4, seed=1))
    assert len(list(batches(loader))) == 3
    assert len(list(batches(evaluation_loader(faces, 4)))) == 4
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_reaches_the_user_as_one_sentence(tmp_path, workers):
    broken = tmp_path / "person" / "4.jpg"
    broken.parent.mkdir()
    for i in range(6):
        (broken.parent / f"{i}.jpg").write_bytes(jpeg_bytes(picture(i))[: 3000 if i == 4 else None])
    index = index_identity_folders(tmp_path, None)
    loaded = []
    with pytest.raises(UserError, match="truncated") as caught:
        for batch in batches(evaluation_loader(index, 2, workers)):
            loaded.append(batch.indices.tolist())
    assert_is_one_sentence(caught.value, broken)
    assert loaded == [[0, 1], [2, 3]]

    with pytest.raises(UserError, match="truncated") as caught:
        list(batches(training_loader(index, EpochSampler(6, 3, seed=0), workers=workers)))
    assert_is_one_sentence(caught.value, broken)
    del caught  # it holds this frame, so only the garbage collector would end the workers, see `batches`


def test_changes_are_those_of_a_plain_loop_and_a_fifth_of_the_images_each():
    images = torch.rand(200, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed = augment(images, seed=5, step=7, start=0, batch_size=200)
    crops, colours = (torch.rand(200, size, generator=random_stream(5, 7, purpose)).tolist()
                      for size, purpose in ((5, CROP), (4, COLOUR)))  # fmt: skip
    cropped = coloured = 0
    for image, result, (crop, tall, wide, down, right), (colour, *factors) in zip(
        images, changed, crops, colours, strict=True
    ):
        expected = image.clone()
        if crop < 0.2:
            cropped += 1
            for y in range(20):
                for x in range(20):
                    for place, size, low in ((y, tall, down), (x, wide, right)):
                        size = 0.5 + 0.5 * size
                        begin = low * (1 - size)
                        if not begin <= (place + 0.5) / 20 <= begin + size:
                            expected[:, y, x] = -1
        if colour < 0.2:
            coloured += 1
            brightness, contrast, saturation = (0.5 + factor for factor in factors)
            pixels = (expected + 1) / 2 * brightness
            grey = 0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]
            pixels = grey + saturation * (pixels - grey)
            mean = (0.299 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]).mean()
            expected = (mean + contrast * (pixels - mean)).clamp(0, 1) * 2 - 1
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    assert 25 <= cropped <= 55 and 25 <= coloured <= 55


def test_an_image_is_changed_alike_however_many_processes_share_the_batch():
    images = torch.rand(12, 3, 20, 20) * 2 - 1
    whole = augment(images, seed=1, step=2, start=0, batch_size=12)
    shares = [augment(images[start : start + 4], 1, 2, start, batch_size=12) for start in (0, 4, 8)]
    assert torch.equal(whole, torch.cat(shares)) and not torch.equal(whole, images)
