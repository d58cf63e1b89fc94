"""Read the weights that ``torch.save`` wrote, without torch and without running anything.

Such a file is a zip archive: ``<root>/data.pkl``, a pickle that describes the
tensors, and ``<root>/data/<key>``, the bytes of each storage.  The pickle is not
unpickled but read by a `PickleMachine` that knows nothing but plain values,
storages and tensors.

Memory is bounded by the size of the file: members must be stored uncompressed
and fit into the file together, a storage is read only if its declared size is
that of its member, and a tensor is a view of its storage.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convkern.errors import DAMAGE, FormatError, one_line
from convkern.pickles import Global, PickleMachine

Array = npt.NDArray[Any]

#: Storage class -> element, as `decode_elements` names it.
_STORAGES = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "bf16",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"

_BYTE_ORDERS = {b"little": "<", b"big": ">"}
#: About 200 bytes describe a tensor, so this is twenty thousand tensors.
_MAX_PICKLE = 1 << 22
#: The archive's directory must fit in one read; storages are read in pieces of this size.
_MAX_READ = 1 << 23
_MAX_NDIM = 32

#: Elements that NumPy reads as another type, and those that become another type.
_READ_AS = {"bf16": "u2", "?": "u1"}
_CONVERT_TO = {"f2": "f4"}


class _Storage(NamedTuple):
    """A run of `numel` elements in the archive's member ``data/<key>``."""

    element: str
    key: str
    numel: int


class _Tensor(NamedTuple):
    """A strided view of a storage; all numbers count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load_torch_zip(file: io.BufferedReader) -> dict[str, Array]:
    """Return the state dict in an open torch.save zip file; FormatError for anything else."""
    size = os.fstat(file.fileno()).st_size
    try:
        with (
            _ShortReads(io.FileIO(file.fileno(), closefd=False)) as reader,
            zipfile.ZipFile(reader) as archive,
        ):
            return _load(archive, size)
    except FormatError:
        raise
    except (*DAMAGE, zipfile.BadZipFile) as error:
        raise FormatError(f"a damaged torch.save file ({one_line(error)})") from error


def decode_elements(raw: npt.NDArray[np.uint8], element: str, order: str = "<") -> Array:
    """Return the elements stored in `raw`, in native byte order.

    float16 and bfloat16 become float32, which holds each of their values exactly.
    """
    values = raw.view(order + _READ_AS.get(element, element))
    if element == "bf16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(_CONVERT_TO.get(element, element), copy=False)


class _ShortReads(io.BufferedReader):
    """A file that refuses the one huge read that a forged directory size would cause."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_READ:
            raise FormatError(f"a damaged torch.save file (a directory of {size} bytes)")
        return super().read(size)


def _load(archive: zipfile.ZipFile, size: int) -> dict[str, Array]:
    """Read the description, check it, then read the storages that it needs."""
    members = _stored_members(archive, size)
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise FormatError("a zip archive, but not one that torch.save wrote (no data.pkl)")
    if members[pickles[0]].file_size > _MAX_PICKLE:
        raise FormatError(f"a torch.save file with more than {_MAX_PICKLE} bytes of description")
    root = pickles[0].removesuffix("data.pkl")
    tensors = _state_dict(_StateDictPickle().run(archive.read(pickles[0])))
    order_name = root + "byteorder"
    order = _BYTE_ORDERS[archive.read(order_name) if order_name in members else b"little"]

    storages: dict[_Storage, Array] = {}
    arrays = {}
    for name, tensor in tensors.items():
        storage = tensor.storage
        if storage not in storages:
            member = members.get(f"{root}data/{storage.key}")
            if member is None:
                raise FormatError(f"a damaged torch.save file (no storage {storage.key[:80]!r})")
            storages[storage] = _read_storage(archive, member, storage, order)
        arrays[name] = _view(tensor, storages[storage], name)
    return arrays


def _stored_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name, after refusing what could inflate a small file."""
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise FormatError("a damaged torch.save file (two members of one name)")
    for member in members.values():
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise FormatError("a compressed zip archive; torch.save stores without compression")
        if not 0 <= member.header_offset < size:
            raise FormatError("a damaged torch.save file (a member outside the file)")
    if sum(member.file_size for member in members.values()) > size:
        raise FormatError("a damaged torch.save file (its members are larger than the file)")
    return members


class _StateDictPickle(PickleMachine):
    """Plain values, storages and tensors; an OrderedDict is a dict."""

    names = frozenset({_DICT, _TENSOR, _PARAMETER, *_STORAGES})
    accepted = "only a state dict of plain tensors is read: torch.save(model.state_dict(), path)"

    def call(self, function: Any, arguments: Any) -> Any:
        """Do what one of the three known functions would do."""
        match function, arguments:
            case Global(name), () if name == _DICT:
                return {}
            case Global(name), (_Storage() as storage, int(offset), shape, strides, *_) if (
                name == _TENSOR and _are_sizes(shape) and _are_sizes(strides) and offset >= 0
            ):
                return _Tensor(storage, offset, shape, strides)
            case Global(name), (_Tensor() as tensor, *_) if name == _PARAMETER:
                return tensor
        raise FormatError("a damaged torch.save file (a tensor that is none)")

    def build(self, value: Any, state: Any) -> None:
        """Ignore the attribute _metadata that torch gives to a state dict."""

    def persistent(self, identity: Any) -> _Storage:
        """Read torch's persistent id of a storage."""
        match identity:
            case ("storage", Global(kind), str(key), str(), int(numel)) if kind in _STORAGES:
                if numel >= 0:
                    return _Storage(_STORAGES[kind], key, numel)
        raise FormatError("a damaged torch.save file (a storage that is none)")


def _are_sizes(values: Any) -> bool:
    """Tell whether `values` can be a shape or strides."""
    return (
        isinstance(values, tuple)
        and len(values) <= _MAX_NDIM
        and all(isinstance(value, int) and value >= 0 for value in values)
    )


def _state_dict(value: Any) -> dict[str, _Tensor]:
    """Return the tensors by name, out of a checkpoint's entry ``"state_dict"`` if it has one."""
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise FormatError("a torch.save file that holds no state dict")
    for name, tensor in value.items():
        if not (isinstance(name, str) and isinstance(tensor, _Tensor)):
            raise FormatError(
                f"a torch.save file whose entry {str(name)[:80]!r} is not a tensor; accepted are "
                'a state dict and a dict with one under "state_dict"'
            )
    return value


def _read_storage(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, storage: _Storage, order: str
) -> Array:
    """Read one storage, once its member is known to have the declared size."""
    itemsize = np.dtype(_READ_AS.get(storage.element, storage.element)).itemsize
    if storage.numel * itemsize != member.file_size:
        raise FormatError(
            f"a damaged torch.save file (storage {storage.key[:80]!r} has {member.file_size} "
            f"bytes, {storage.numel} elements of {itemsize} bytes are declared)"
        )
    raw = np.empty(member.file_size, np.uint8)
    target = raw.data
    with archive.open(member) as stream:
        for start in range(0, member.file_size, _MAX_READ):
            target[start : start + _MAX_READ] = stream.read(_MAX_READ)
    return decode_elements(raw, storage.element, order)


def _view(tensor: _Tensor, storage: Array, name: str) -> Array:
    """Return the tensor as a view that lies within its storage."""
    numel = math.prod(tensor.shape)
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if numel > storage.size or (numel and tensor.offset + last >= storage.size):
        raise FormatError(
            f"a damaged torch.save file (tensor {name[:80]!r} exceeds its storage of "
            f"{storage.size} elements)"
        )
    if not numel:
        return np.empty(tensor.shape, storage.dtype)
    strides = [step * storage.itemsize for step in tensor.strides]
    return np.ndarray(
        tensor.shape, storage.dtype, storage, tensor.offset * storage.itemsize, strides
    )
