"""What the command line trains: data sets, the nets for them, and how one meets the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from convkern import data, models
from convkern.checkpoint import NET, load_training, part
from convkern.data import DataLoader, Dataset, Normalize, Transform
from convkern.errors import DAMAGE, FormatError, one_line
from convkern.geometry import integer
from convkern.images import load_pixels
from convkern.nn import SGD, CosineAnnealingLR, LRScheduler, MultiStepLR, Sequential
from convkern.nn.common import real
from convkern.training.loop import CHECKPOINT
from convkern.training.workers import Alone, Workers

Array = npt.NDArray[Any]

#: The data sets by name, each with the net and the number of epochs that suit it.
DATASETS = {
    "digits": ("digits_cnn", 20),
    "mnist": ("mnist_cnn", 5),
    "fashion_mnist": ("mnist_cnn", 10),
    "cifar10": ("cifar_advanced", 20),
    "cifar100": ("cifar_advanced", 20),
}
_FOLDER = ("resnet18", 20)
#: What a mirror image is still an example of.
NOT_MIRRORED = ("digits", "mnist", "fashion_mnist")
SCHEDULES = ("constant", "cosine", "step")
#: Every so many images of a class are held out where a folder has no test set.
_HELD_OUT = 5
#: Of a folder of photos: the shorter side before the centre is cut out, over the net's.
_RESIZE = 256 / 224
#: Above these a small checkpoint could ask for any amount of memory.
_MAX_SIDE, _MAX_CLASSES = 1 << 12, 1 << 15
#: Nets without normalisation do not bear the learning rate of the others.
_GENTLE = ("alexnet", "vgg11", "vgg16", "vgg19", "cifar_basic", "cs231n_convnet")


@dataclass(frozen=True)
class Recipe:
    """All that a run follows from; JSON holds it in its checkpoint.

    Attributes
    ----------
    dataset : str
        A name of `DATASETS`, or ``"folder"``.
    model : str
        A function of `convkern.models`.
    epochs, batch_size, lr, momentum, weight_decay, schedule, seed
        As the options of ``convkern train``.

    Examples
    --------
    >>> from convkern.training.recipe import Recipe
    >>> Recipe.of("digits", {"epochs": 3, "lr": None}).epochs
    3
    """

    dataset: str
    model: str
    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    schedule: str
    seed: int

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("dataset", self.dataset, [*DATASETS, "folder"]),
            ("model", self.model, models.INPUT_SHAPE),
            ("schedule", self.schedule, SCHEDULES),
        ):
            if value not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
        integer(self.epochs, "epochs", 1)
        integer(self.batch_size, "batch_size", 1)
        integer(self.seed, "seed", 0)
        for name in ("lr", "weight_decay"):
            real(getattr(self, name), name, 0)
        real(self.momentum, "momentum", 0, below=1)

    @classmethod
    def of(cls, dataset: str, options: Mapping[str, Any]) -> Self:
        """Return the recipe of a data set, with the `options` that are not None."""
        model, epochs = DATASETS.get(dataset, _FOLDER)
        model = options.get("model") or model
        values = {
            "model": model,
            "epochs": epochs,
            "batch_size": 32 if dataset == "digits" or models.INPUT_SIZE[model] > 32 else 128,
            "lr": 0.01 if model in _GENTLE else 0.05,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "seed": 0,
        }
        given = {name: options[name] for name in values if options.get(name) is not None}
        return cls(dataset, **{**values, **given})

    def schedule_of(self, optimizer: SGD) -> LRScheduler | None:
        """Return the schedule of the learning rate."""
        if self.schedule == "cosine":
            return CosineAnnealingLR(optimizer, self.epochs)
        if self.schedule == "step":
            return MultiStepLR(optimizer, [self.epochs // 2, self.epochs * 3 // 4])
        return None


@dataclass(frozen=True)
class Preparation:
    """How images of a data set become the input of a net, in training and ever after.

    Attributes
    ----------
    size : (int, int)
        Height and width of the images of the data set.
    resize : int
        To which shorter side a photo is brought before `size` is cut out of it.
    channels : int
        Of the net.
    target : (int, int)
        Height and width that the net takes.
    mean, std : list of float
        What the channels are normalised by.
    classes : list of str
        The names of the classes.

    Examples
    --------
    >>> from convkern.training.recipe import Preparation
    >>> prepared = Preparation((28, 28), 28, 3, (32, 32), [0.0] * 3, [1.0] * 3, ["a", "b"])
    >>> prepared.transforms()
    [Resize((32, 32))]
    """

    size: tuple[int, int]
    resize: int
    channels: int
    target: tuple[int, int]
    mean: list[float]
    std: list[float]
    classes: list[str]

    def __post_init__(self) -> None:
        if max(*self.size, *self.target) > _MAX_SIDE:
            raise ValueError(f"images must have at most {_MAX_SIDE} pixels a side, got {self.size}")
        if len(self.classes) > _MAX_CLASSES:
            raise ValueError(f"there must be at most {_MAX_CLASSES} classes")

    @classmethod
    def fit(cls, model: str, train: Dataset, resize: int) -> Preparation:
        """Return what fits the images of a training set to a net."""
        channels, *target = models.INPUT_SHAPE[model]
        norm = Normalize.fit(with_channels(train, channels))
        height, width = train.images.shape[2:]
        return cls(
            (height, width),
            resize,
            channels,
            (target[0], target[1]),
            [*norm.mean],
            [*norm.std],
            [*train.classes],
        )

    def transforms(self, *, mirror: bool = False, augment: bool = False) -> list[Transform]:
        """Return what the bytes of a batch go through, at random with `augment`.

        Smaller images are enlarged.  Of larger ones the centre is cut out, or in
        training a random window, which of images of the right size has a border
        of up to an eighth beyond them.
        """
        steps: list[Transform] = []
        if augment and mirror:
            steps.append(data.RandomHorizontalFlip())
        if max(self.size) > min(self.target):
            steps.append(data.RandomCrop(self.target) if augment else data.CenterCrop(self.target))
        elif augment:
            steps.append(data.RandomCrop(self.size, padding=max(1, min(self.size) // 8)))
        if max(self.size) < max(self.target):
            steps.append(data.Resize(self.target))
        return steps

    def loader(
        self,
        dataset: Dataset,
        batch_size: int,
        workers: Workers,
        *,
        seed: int | None = None,
        mirror: bool = False,
    ) -> DataLoader:
        """Return a loader of a data set: of a training set with a `seed`, and to evaluate without.

        Raises
        ------
        ValueError
            If the data set has other classes.
        """
        if list(dataset.classes) != self.classes:
            raise ValueError(
                f"the net knows {len(self.classes)} classes ({_some(self.classes)}), the data set "
                f"has {len(dataset.classes)} ({_some(dataset.classes)})"
            )
        return DataLoader(
            with_channels(dataset, self.channels),
            batch_size,
            seed is not None,
            rng=0 if seed is None else seed,
            transforms=self.transforms(mirror=mirror, augment=seed is not None),
            normalize=Normalize(self.mean, self.std),
            shard=(workers.rank, workers.size),
        )

    def photos(self, paths: Sequence[str]) -> Dataset:
        """Read photos as if they were of the data set; they are all labelled 0."""
        pixels = [load_pixels(path, self.size, resize=self.resize) for path in paths]
        images = np.stack(pixels).transpose(0, 3, 1, 2)
        return Dataset(images, np.zeros(len(images), np.int64), self.classes)

    def __str__(self) -> str:
        """Say what happens to an image."""
        (height, width), (rows, columns) = self.size, self.target
        steps = [f"images of {height}x{width}"]
        if height > rows:
            steps.append(f"windows of {rows}x{columns}")
        if height < rows:
            steps.append(f"enlarged to {rows}x{columns}")
        steps.append("in grey" if self.channels == 1 else f"with {self.channels} channels")
        return ", ".join(steps)


def load_data(
    name: str, folder: str | os.PathLike[str] | None, side: int, *, download: bool = False
) -> tuple[Dataset, Dataset]:
    """Read a data set by its name, or a folder of photos.

    Parameters
    ----------
    name : str
        A name of `DATASETS`, or the path of a folder with a folder of photos for
        each class, or with two such, ``train`` and ``test``.  Without these, every
        fifth photo of a class is held out.
    folder : str or path-like, optional
        Where a data set with a name is.
    side : int
        The height and width to which photos are brought.
    download : bool
        Fetch it if it is not there.

    Returns
    -------
    train, test : Dataset

    Raises
    ------
    FileNotFoundError
        If it is not there.
    FormatError
        If a file is damaged.
    ValueError
        If a folder has too few photos to hold some out.

    Examples
    --------
    >>> from convkern.training.recipe import load_data
    >>> load_data("digits", None, 8)
    (Dataset(1437 images of 1x8x8, 10 classes), Dataset(360 images of 1x8x8, 10 classes))
    """
    if name == "digits":
        return data.load_digits()
    if name in DATASETS:
        read: Any = getattr(data, f"load_{name}")
        pair: tuple[Dataset, Dataset] = read(folder, download=download)
        return pair
    root = Path(name)
    if not root.is_dir():
        known = ", ".join(DATASETS)
        raise FileNotFoundError(
            f"DATASET must be one of {known} or a folder of folders of images, got {name}"
        )
    resize = round(side * _RESIZE)
    if (root / "train").is_dir() and (root / "test").is_dir():
        train = data.load_image_folder(root / "train", side, resize=resize)
        test = data.load_image_folder(root / "test", side, resize=resize, classes=train.classes)
        return train, test
    everything = data.load_image_folder(root, side, resize=resize)
    numbers = np.concatenate([np.arange(n) for n in np.bincount(everything.labels)])
    held_out = numbers % _HELD_OUT == _HELD_OUT - 1
    if not held_out.any():
        raise ValueError(
            f"{root} must have a class of at least {_HELD_OUT} images, one of which is held out"
        )
    return everything.take(~held_out), everything.take(held_out)


def with_channels(dataset: Dataset, channels: int) -> Dataset:
    """Return a data set in grey (ITU-R BT.601) or in colour, with equal channels if it was grey.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.data import Dataset
    >>> from convkern.training.recipe import with_channels
    >>> with_channels(Dataset(np.zeros((5, 1, 8, 8), np.uint8), np.zeros(5, int), ["a"]), 3)
    Dataset(5 images of 3x8x8, 1 classes)
    """
    images = dataset.images
    if images.shape[1] == channels:
        return dataset
    if channels == 1:
        red, green, blue = images.astype(np.uint32).transpose(1, 0, 2, 3)
        images = ((299 * red + 587 * green + 114 * blue + 500) // 1000).astype(np.uint8)[:, None]
    else:
        images = images.repeat(channels, axis=1)
    return Dataset(images, dataset.labels, dataset.classes)


def resize_of(name: str, size: int) -> int:
    """Return to which shorter side photos are brought for a data set with images of `size`."""
    return size if name in DATASETS else round(size * _RESIZE)


def build(model: str, classes: int, seed: int) -> Sequential:
    """Return a new net of `convkern.models`; the same seed gives the same weights.

    Examples
    --------
    >>> from convkern.training.recipe import build
    >>> build("digits_cnn", 3, seed=0).output_shape((1, 1, 8, 8))
    (1, 3)
    """
    net: Sequential = getattr(models, model)(classes, rng=np.random.default_rng(seed))
    return net


def checkpoint_of(path: str | os.PathLike[str]) -> Path:
    """Return the checkpoint that a path means: the file, or the one in the folder."""
    return Path(path) / CHECKPOINT if os.path.isdir(path) else Path(path)


def pack(recipe: Recipe, preparation: Preparation) -> dict[str, Any]:
    """Return what a checkpoint holds of both; `unpack` reads it."""
    return {"recipe": asdict(recipe), "preparation": asdict(preparation)}


def unpack(path: str | os.PathLike[str]) -> tuple[Recipe, Preparation, Sequential]:
    """Read a checkpoint of ``convkern train``: recipe, preparation and the trained net.

    Raises
    ------
    FormatError
        If it is damaged, or was not written by ``convkern train``.
    """
    arrays, values = load_training(path)
    try:
        packed = values["recipe"]
        recipe = Recipe(**packed["recipe"])
        entries = packed["preparation"]
        for name in ("size", "target"):
            height, width = (integer(side, name, 1) for side in entries[name])
            entries[name] = height, width
        integer(entries["resize"], "resize", max(entries["size"]))
        integer(entries["channels"], "channels", 1)
        preparation = Preparation(**entries)
        shape = (preparation.channels, *preparation.target)
        if shape != models.INPUT_SHAPE[recipe.model]:
            raise ValueError(f"{recipe.model} takes no images of {shape}")
        # What does not go together shows when an image is prepared.
        blank = np.zeros((1, preparation.channels, *preparation.size), np.uint8)
        for images, _ in preparation.loader(Dataset(blank, [0], preparation.classes), 1, Alone()):
            if images.shape != (1, *shape):
                raise ValueError(f"images of {preparation.size} do not become {shape}")
        state = part(arrays, NET)
        net = build(recipe.model, len(preparation.classes), recipe.seed)
        net.load_state_dict(state)
    except DAMAGE as error:
        raise FormatError(
            f"{os.fspath(path)} is damaged or no checkpoint of convkern train: {one_line(error)}"
        ) from error
    return recipe, preparation, net.eval()


def _some(names: Sequence[str]) -> str:
    """Name the first few of many."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
