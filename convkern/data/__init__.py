"""Data sets for training: readers that never execute what they read, and their batches."""

from convkern.data.cifar import load_cifar10, load_cifar100
from convkern.data.dataset import Dataset
from convkern.data.digits import load_digits
from convkern.data.files import data_folder
from convkern.data.folder import load_image_folder
from convkern.data.loader import DataLoader
from convkern.data.mnist import load_fashion_mnist, load_mnist, read_idx
from convkern.data.transforms import (
    CenterCrop,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
    Transform,
)

__all__ = [
    "CenterCrop",
    "DataLoader",
    "Dataset",
    "Normalize",
    "RandomCrop",
    "RandomHorizontalFlip",
    "Resize",
    "Transform",
    "data_folder",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_fashion_mnist",
    "load_image_folder",
    "load_mnist",
    "read_idx",
]
