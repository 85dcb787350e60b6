"""Pictures in batches, decoded by worker processes; the order of training depends on seed and epoch alone."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from data.age_cache import NUM_VIEWS, AgeCache
from data.faces import UNKNOWN, Faces
from data.transforms import UnreadablePicture
from meta import EMBEDDING_SIZE, UserError
from utils.worker_processes import started

OnBadImage = Literal["error", "skip"]
MAX_TRIES = 100  # pictures in a row that cannot be decoded are a broken disk or folder, not some broken files


class FaceBatch(NamedTuple):
    images: Tensor  # (N, 3, 112, 112) uint8
    identities: Tensor  # (N,) int64, -1 where unknown
    age_groups: Tensor  # (N,) int64, -1 where unknown
    indices: Tensor  # (N,) int64, positions in the index
    ages: Tensor  # (N,) int64, years, -1 where unknown
    age_features: Tensor  # (N, 2, 512) float16 of both views, zeros where they are not known; (N, 0) where none is
    failures: tuple[str, ...] = ()  # "'path': reason" of each picture that was skipped, see `training_loader`


# One face of a FaceBatch: image (3, 112, 112), identity, age group, index, age; its age features, or None; and the
# failures on the way to it.
Item = tuple[Tensor, int, int, int, int, np.ndarray | None, tuple[str, ...]]


class FaceDataset(Dataset):
    """The faces of an index; an unreadable picture is a value, the UserError, see `batches`.

    With `on_bad_image` "skip" the next readable picture of the index stands for it, the first again after the last.
    """

    def __init__(self, index: Faces, on_bad_image: OnBadImage = "error", age_cache: AgeCache | None = None):
        assert on_bad_image in get_args(OnBadImage), f"on_bad_image is {on_bad_image!r}"
        self.index, self.on_bad_image, self.age_cache = index, on_bad_image, age_cache
        self.age_groups = index.age_groups

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Item | UserError:
        failures: list[str] = []
        for k in ((i + step) % len(self) for step in range(min(MAX_TRIES, len(self)))):
            try:
                image = self.index.decode(k)
                age = UNKNOWN if self.index.ages is None else int(self.index.ages[k])
                features = self.age_cache.read(k) if self.age_cache else None
                return (image, int(self.index.identities[k]), int(self.age_groups[k]), k, age, features,
                        tuple(failures))  # fmt: skip
            except UnreadablePicture as error:
                if self.on_bad_image == "error":
                    return error
                failures.append(f"{error.name!r}: {error.reason}")  # not the error: it would keep this frame alive
        return UserError(
            f"{len(failures)} pictures one after another cannot be decoded, from {failures[0]} to {failures[-1]}: "
            f"check the {'folder' if os.path.isdir(self.index.root) else 'file'} {self.index.root!r}."
        )


def collate(items: list[Item | UserError]) -> FaceBatch | UserError:
    """One batch, or the first error among its items."""
    for item in items:
        if isinstance(item, UserError):
            return item
    failures = tuple(failure for item in items for failure in item[-1])
    known = {row: item[-2] for row, item in enumerate(items) if item[-2] is not None}
    features = torch.empty(len(items), 0, dtype=torch.float16)
    if known:
        features = torch.zeros(len(items), NUM_VIEWS, EMBEDDING_SIZE, dtype=torch.float16)
        features[list(known)] = torch.from_numpy(np.stack(list(known.values())))
    return FaceBatch(*default_collate([item[:-2] for item in items]), features, failures)


def batches(loader: DataLoader) -> Iterator[FaceBatch]:
    """The loader's batches. Errors are raised here, in the main process, where they are one sentence.

    DataLoader would raise what a worker raised with the worker's traceback in the message.

    Raises:
        UserError: for a picture that cannot be decoded.
    """
    for batch in started(loader):
        if isinstance(batch, UserError):
            try:
                raise batch
            finally:
                # The error's traceback holds this frame; if the frame held the error, only the garbage collector could
                # free the two. It closes the queues before the workers are asked to end: 5 s of waiting for each.
                del batch
        yield batch._replace(failures=tuple(batch.failures))  # pinning memory makes a list of it


class EpochSampler(Sampler[list[int]]):
    """This process's share of each whole batch of an epoch; a last batch that would not be whole is left out.

    A whole batch is `batch_size * world_size` images. Which ones depends on seed, epoch and its size, so one process
    with a batch of 2n and two with a batch of n see the same whole batches.

    Raises:
        UserError: for fewer images than one whole batch.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1):
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self.num_images, self.batch_size, self.seed, self.rank = num_images, batch_size, seed, rank
        self.whole_batch_size = batch_size * world_size
        self.num_batches = num_images // self.whole_batch_size  # of a full epoch, whatever `start` is
        self.set_epoch(0)
        if self.num_batches == 0:
            processes = f" ({batch_size} on each of {world_size} processes)" if world_size > 1 else ""
            raise UserError(
                f"{num_images} images do not fill one batch of {self.whole_batch_size}{processes}: "
                "lower --batch-size or add images."
            )

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Which epoch to draw next, and how many of its first batches a run that resumes has had already."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches still to come in this epoch."""
        return max(0, self.num_batches - self.start)

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order(self.epoch)
        own = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for batch in range(self.start, self.num_batches):
            yield self._whole_batch(order, batch)[own].tolist()

    def indices_of(self, epoch: int, batch: int) -> np.ndarray:
        """The images of one whole batch, of all processes in their order: (batch_size * world_size,) int64.

        As drawn: where a picture was skipped, its own index stands here and its replacement's in the FaceBatch.
        """
        if not 0 <= batch < self.num_batches:
            raise IndexError(f"batch {batch} of {self.num_batches}")
        return self._whole_batch(self._order(epoch), batch)

    def _order(self, epoch: int) -> np.ndarray:
        # Seed and epoch apart, not added: seed 0, epoch 1 must not repeat seed 1, epoch 0.
        return np.random.default_rng((self.seed, epoch)).permutation(self.num_images)

    def _whole_batch(self, order: np.ndarray, batch: int) -> np.ndarray:
        return order[batch * self.whole_batch_size : (batch + 1) * self.whole_batch_size]


def training_loader(
    index: Faces,
    sampler: EpochSampler,
    *,
    workers: int = 0,
    pin_memory: bool = False,
    on_bad_image: OnBadImage = "error",
    age_cache: AgeCache | None = None,
) -> DataLoader:
    """The sampler's batches of the index; call its `set_epoch` before each epoch. Read through `batches`.

    With `on_bad_image` "skip" a picture that cannot be decoded is no error: the next one in the order of the index that
    can stands for it, in every epoch and process the same, and `failures` of its batch names it and every other that
    was tried in vain. One bad picture may so be named in several batches.
    """
    faces = FaceDataset(index, on_bad_image, age_cache)
    return _loader(faces, workers, pin_memory, batch_sampler=sampler, persistent_workers=workers > 0)


def evaluation_loader(
    index: Faces,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    *,
    rank: int = 0,
    world_size: int = 1,
    indices: Sequence[int] | None = None,
    on_bad_image: OnBadImage = "error",
) -> DataLoader:
    """Every image once, or each of `indices`, in this order; the last batch may be smaller. Read through `batches`.

    Of several processes `rank` gets the images rank, rank + world_size, ...: over all of them each image comes once,
    and a process beyond the last image gets none.
    """
    assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
    share = (range(len(index)) if indices is None else indices)[rank::world_size]
    return _loader(FaceDataset(index, on_bad_image), workers, pin_memory, batch_size=batch_size, sampler=share)


def loader_of_batches(
    index: Faces, rows: Iterable[list[int]], workers: int = 0, pin_memory: bool = False
) -> DataLoader:
    """One batch for each list of positions, once over; read through `batches`."""
    return _loader(FaceDataset(index), workers, pin_memory, batch_sampler=rows)


def _loader(faces: FaceDataset, workers: int, pin_memory: bool, **how) -> DataLoader:
    # Two batches a worker wait decoded (torch's default): 39 MB of shared memory for each worker at batch size 512.
    return DataLoader(
        faces,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=collate,
        # DataLoader draws a seed for its workers; from its own generator, so that a run's random state does not depend
        # on how often a loader was started.
        generator=torch.Generator(),
        **how,
    )
