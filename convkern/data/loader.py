"""Batches of a data set, each prepared while the one before it is in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from convkern.data.dataset import Dataset, channels_last
from convkern.data.transforms import Normalize, Transform
from convkern.geometry import integer

Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


class DataLoader:
    """Iterate over a data set in batches, the same way again from the same seed.

    Every ``for images, labels in loader`` is one epoch.  Images are float32,
    (N, C, H, W) in channels-last memory; they stay bytes until their batch is
    made, which a thread does while the batch before is in use.

    Everything random follows from the seed and from the numbers of the epoch and the
    batch alone.  So `state_dict` is small, a run that goes on from it gets the
    very same batches, and so do processes that share the work: together the
    shards of a batch are the batch of a loader that has it for itself.

    Parameters
    ----------
    dataset : Dataset
        The images.
    batch_size : int
        Images in a batch, of all shards together.
    shuffle : bool
        Draw a new order for every epoch.
    rng : int or numpy.random.Generator, optional
        The seed, or what it is drawn from; by default it is fresh.
    drop_last : bool
        Leave out a last batch that is not full.
    transforms : sequence of Transform
        What is done to the bytes, one after the other.
    normalize : Normalize, optional
        What makes floats of them; by default values of 0 to 1.
    shard : (int, int)
        ``(rank, world)``: make only the part of each batch that belongs to
        process `rank` of `world`.  Parts are contiguous and differ by one image at
        most; of a small last batch a part may be empty, so that all processes
        make as many steps.  Weight what is averaged by the number of images.

    Attributes
    ----------
    epoch : int
        The epoch that is under way or comes next.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above; or if there are several shards and no
        `rng`, with which each process would see another order.

    Notes
    -----
    After leaving a loop early the next one begins the next epoch.  An iterator
    that was left ends its thread when it is closed or no longer referred to.
    The same numbers need the same version of NumPy.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import DataLoader, Dataset
    >>> dataset = Dataset(np.zeros((10, 3, 8, 8), np.uint8), np.arange(10), list("abcdefghij"))
    >>> loader = DataLoader(dataset, 4, shuffle=True, rng=0)
    >>> [images.shape for images, labels in loader]
    [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)]
    >>> loader.epoch
    1
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        shuffle: bool = False,
        *,
        rng: int | np.random.Generator | None = None,
        drop_last: bool = False,
        transforms: Sequence[Transform] = (),
        normalize: Normalize | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise TypeError(f"dataset must be a Dataset, got {type(dataset).__name__}")
        self.dataset = dataset
        self.batch_size = integer(batch_size, "batch_size", 1)
        self.shuffle = bool(shuffle)
        self.drop_last = bool(drop_last)
        self.transforms = tuple(transforms)
        channels = dataset.images.shape[1]
        if not isinstance(normalize, (Normalize, type(None))):
            raise TypeError(f"normalize must be a Normalize or None, got {normalize!r:.80}")
        self.normalize = normalize or Normalize([0] * channels, [1] * channels)
        if len(self.normalize.mean) != channels:
            raise ValueError(f"normalize must be for {channels} channels, got {normalize}")
        self.shard = _checked_shard(shard)
        if self.shard[1] > 1 and rng is None:
            raise ValueError("rng must be given for several shards, the same seed for each")
        if not isinstance(rng, (int, np.integer, np.random.Generator, type(None))):
            raise TypeError(f"rng must be a seed, a Generator or None, got {rng!r:.80}")
        self._seed = int(np.random.default_rng(rng).integers(2**63))
        self._images = channels_last(dataset.images)
        self._epoch = 0
        self._position = 0  # batches of this epoch that have been handed out
        self._resumed = True  # nothing of the state is used up
        self._run = 0  # counts the iterators, as only the last one keeps the state

    @property
    def epoch(self) -> int:
        """The epoch that is under way or comes next."""
        return self._epoch

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        if not self._resumed:
            if self._position:
                self._epoch += 1
            self._position = 0
        self._resumed = False
        self._run += 1
        return self._batches(self._run, self._epoch, self._position)

    def state_dict(self) -> dict[str, int | bool]:
        """Return where the loader is, as values that JSON knows.

        Inside the loop the batch that is in use counts as done.  The state
        belongs to the iterator that was started last.

        Returns
        -------
        dict
            The epoch, the number of batches of it that are done, the seed from
            which its random numbers follow, and what the order depends on.

        Examples
        --------
        >>> import numpy as np
        >>> from convkern.data import DataLoader, Dataset
        >>> dataset = Dataset(np.zeros((10, 1, 8, 8), np.uint8), np.arange(10), list("abcdefghij"))
        >>> loader = DataLoader(dataset, 4, shuffle=True, rng=0)
        >>> images, labels = next(iter(loader))
        >>> again = DataLoader(dataset, 4, shuffle=True)
        >>> again.load_state_dict(loader.state_dict())
        >>> len([*again])
        2
        """
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self._seed,
            **self._shape_of_an_epoch(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: the next loop gives the rest of its epoch.

        The number of shards may be another one.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        KeyError
            If an entry is missing.
        TypeError, ValueError
            If an entry is not an integer that makes sense here, or is of a
            loader with other data, batches or order.  The loader stays as it is.
        """
        for name, here in self._shape_of_an_epoch().items():
            if state[name] != here:
                raise ValueError(
                    f"state[{name!r}] must be this loader's {here}, got {state[name]!r}"
                )
        epoch = integer(state["epoch"], "state['epoch']", 0)
        position = integer(state["position"], "state['position']", 0)
        seed = state["seed"]
        if position > len(self):
            raise ValueError(f"state['position'] must be at most {len(self)}, got {position}")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise ValueError(f"state['seed'] must be an integer from 0 to 2**63-1, got {seed!r}")
        self._epoch, self._position, self._seed = epoch, position, seed
        self._resumed = True
        self._run += 1

    def _shape_of_an_epoch(self) -> dict[str, int | bool]:
        """Return what has to be equal for a position to mean the same."""
        return {
            "images": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def _batches(self, run: int, epoch: int, start: int) -> Iterator[Batch]:
        """Make the batches of an epoch from number `start` on."""
        seed = self._seed
        order = np.arange(len(self.dataset))
        if self.shuffle:
            _generator(seed, epoch, 0).shuffle(order)
        numbers = range(start, len(self))
        with closing(_ahead(partial(self._make, order, seed, epoch), numbers)) as batches:
            for number, batch in zip(numbers, batches, strict=True):
                if run == self._run:
                    self._position = number + 1
                yield batch
        if run == self._run:
            self._epoch, self._position = epoch + 1, 0

    def _make(self, order: npt.NDArray[np.int64], seed: int, epoch: int, number: int) -> Batch:
        """Make one batch, or this shard of it."""
        rng = _generator(seed, epoch, number + 1)
        whole = order[number * self.batch_size : (number + 1) * self.batch_size]
        rank, world = self.shard
        part = slice(len(whole) * rank // world, len(whole) * (rank + 1) // world)
        indices = whole[part]
        images = self._images.transpose(0, 2, 3, 1)[indices].transpose(0, 3, 1, 2)
        for transform in self.transforms:
            # For the whole batch, so that an image fares the same however many shards there are.
            drawn = transform.draw(rng, (len(whole), *images.shape[1:]))
            images = transform(images, drawn[part])
        return self.normalize(images), self.dataset.labels[indices]


def _generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """Return the generator of one stream of an epoch: 0 for the order, then one for each batch."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, stream)))


def _checked_shard(shard: Any) -> tuple[int, int]:
    """Return ``(rank, world)``, or raise."""
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise TypeError(f"shard must be a tuple (rank, world), got {shard!r}")
    rank, world = integer(shard[0], "rank", 0), integer(shard[1], "world", 1)
    if rank >= world:
        raise ValueError(f"shard must have a rank below the world, got {shard}")
    return rank, world


def _ahead(make: Callable[[_Item], _Made], items: Iterable[_Item]) -> Generator[_Made, None, None]:
    """Yield ``make(item)`` for each item; a thread makes the next while one is in use.

    What `make` raises is raised here.  The thread ends with the iterator.
    """
    process = os.getpid()
    with ThreadPoolExecutor(1, "convkern-data") as thread:
        if not _starts(thread):
            yield from map(make, items)
            return
        upcoming: Future[_Made] | None = None
        for item in items:
            ready, upcoming = upcoming, thread.submit(make, item)
            if ready is not None:
                yield ready.result()
            if os.getpid() != process:
                raise RuntimeError("a loader's iterator cannot be used after a fork; start another")
        if upcoming is not None:
            yield upcoming.result()


def _starts(thread: ThreadPoolExecutor) -> bool:
    """Start the thread, unless the system has none left."""
    try:
        thread.submit(int).result()
    except RuntimeError:
        return False
    return True
