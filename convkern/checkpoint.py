"""Weights on disk: safetensors in and out, torch's zip files in.

The format of a file is told by its content.  Nothing that is read is executed,
and a damaged file is a `FormatError`, never a wrong array.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convkern.errors import FormatError, import_extra, open_regular
from convkern.interop.torch_zip import decode_elements, load_torch_zip

Array = npt.NDArray[Any]

#: Safetensors' names of the element types, as `decode_elements` and NumPy name them.
_ELEMENTS = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": "bf16",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U64": "u8",
    "U32": "u4",
    "U16": "u2",
    "U8": "u1",
    "BOOL": "?",
}
_SAVED_DTYPES = {np.dtype(code) for code in _ELEMENTS.values() if code != "bf16"}
#: About 100 bytes describe a tensor, so this is forty thousand; the header is parsed in memory.
_MAX_HEADER = 1 << 22

#: How the names of the net's entries begin in a checkpoint of training, and the entry that
#: holds all else as JSON: a tensor of bytes, as the size of a header is limited.
NET, _VALUES = "net.", "convkern.training"

_ZIP_MAGIC = b"PK\x03\x04"
#: Pickle protocol 2, then the number with which torch's format before 1.6 begins.
_OLD_TORCH_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46"


def load_weights(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read a safetensors file or a state dict that ``torch.save`` wrote.

    Parameters
    ----------
    path : str or path-like
        A regular file.  Its content tells the format, its name does not matter.

    Returns
    -------
    dict of str to array
        Arrays in native byte order, with the names, shapes and element types of
        the file, except that float16 and bfloat16 become float32 (exactly).
        Arrays may be strided; tensors that share a storage in a torch file
        share memory.  Of a checkpoint ``{"state_dict": {...}, ...}`` the state
        dict is returned, of one of `convkern.training` that of the net.

    Raises
    ------
    FormatError
        If the file is of another format, damaged, truncated or not a regular
        file, or is a pickle with anything but tensors.  Memory is bounded by
        about twice the size of the file.
    OSError
        If the file cannot be read.
    ImportError
        If the file needs safetensors, and it is not installed.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from convkern.checkpoint import load_weights, save_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "net.safetensors")
    ...     save_weights(path, {"0.bias": np.arange(3.0)})
    ...     load_weights(path)
    {'0.bias': array([0., 1., 2.])}
    """
    arrays = _load(path)
    return part(arrays, NET) if _VALUES in arrays else arrays


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, Array]) -> None:
    """Write arrays by name as a safetensors file, whole or not at all.

    The file is written under another name in the same folder, flushed to the
    disk and then renamed.  Whatever happens, `path` holds either the old
    weights or the new ones; after a kill, the file with the other name
    (``.<name>.<random>.tmp``) may remain.

    Parameters
    ----------
    path : str or path-like
        The file to create or replace.
    weights : mapping of str to array
        Arrays of floats, integers or booleans, of any strides and byte order.

    Raises
    ------
    TypeError
        If a name is not a string, or a value not an array of such a type.
    ValueError
        If there are more names than `load_weights` reads, 4 MiB with the shapes.
    FormatError
        If `path` exists and is not a regular file.
    OSError
        If the file cannot be written.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from convkern.checkpoint import save_weights
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_weights(os.path.join(folder, "net.safetensors"), {"0.bias": np.zeros(3)})
    ...     os.listdir(folder)
    ['net.safetensors']
    """
    arrays = {}
    for name, value in weights.items():
        if not isinstance(name, str):
            raise TypeError(f"weights must have strings as names, got {name!r}")
        if not isinstance(value, np.ndarray) or value.dtype.newbyteorder("=") not in _SAVED_DTYPES:
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(
                f"weights[{name!r}] must be an array of floats, integers or booleans, got {kind}"
            )
        arrays[name] = np.asarray(value, value.dtype.newbyteorder("="), order="C")
    content = import_extra("safetensors.numpy").save(arrays)
    header_size = int.from_bytes(content[:8], "little")
    if header_size > _MAX_HEADER:
        raise ValueError(
            f"weights have names and shapes of {header_size} bytes; at most {_MAX_HEADER} are read"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_training(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read all of a checkpoint of `convkern.training`: its arrays and what else it holds.

    Parameters
    ----------
    path : str or path-like
        A file that `save_training` wrote.

    Returns
    -------
    arrays : dict of str to array
        The net's entries begin with ``net.``.
    values : dict
        What JSON holds: numbers, strings, lists and dicts.

    Raises
    ------
    FormatError
        If the file is something else or damaged.
    OSError
        If the file cannot be read.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from convkern.checkpoint import load_training, save_training
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "run.safetensors")
    ...     save_training(path, {"net.0.bias": np.zeros(2)}, {"epoch": 3})
    ...     load_training(path)
    ({'net.0.bias': array([0., 0.])}, {'epoch': 3})
    """
    arrays = _load(path)
    if _VALUES not in arrays:
        raise FormatError(f"{os.fspath(path)}: not a checkpoint of training, only weights")
    try:
        values = json.loads(arrays.pop(_VALUES).tobytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{os.fspath(path)}: damaged checkpoint ({error})") from error
    if not isinstance(values, dict):
        raise FormatError(f"{os.fspath(path)}: damaged checkpoint (its values are no dict)")
    return arrays, values


def save_training(
    path: str | os.PathLike[str], arrays: Mapping[str, Array], values: Mapping[str, Any]
) -> None:
    """Write a checkpoint of training as `save_weights` does, whole or not at all.

    Parameters
    ----------
    path : str or path-like
        The file to create or replace.
    arrays : mapping of str to array
        Those of the net under ``net.<name>``, which `load_weights` returns.
    values : mapping
        All else, as JSON holds it.

    Raises
    ------
    TypeError, ValueError, FormatError, OSError, ImportError
        As `save_weights`.
    """
    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    save_weights(path, {**arrays, _VALUES: text})


def part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the entries whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give another name to write to; what stands there replaces `path` at the end, or nothing does.

    Examples
    --------
    >>> import os, tempfile
    >>> from convkern.checkpoint import replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "log.csv")
    ...     with replacing(path) as temporary:
    ...         _ = temporary.write_text("epoch,loss")
    ...     os.listdir(folder)
    ['log.csv']
    """
    target = Path(path).resolve()  # through a symbolic link, not over it
    if target.exists() and not target.is_file():
        raise FormatError(f"{target} is not a regular file")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read all arrays of a file."""
    with open_regular(path) as file:
        start = file.read(9)
        try:
            if start.startswith(_ZIP_MAGIC):
                return load_torch_zip(file)
            if start.startswith(_OLD_TORCH_MAGIC):
                raise FormatError(
                    "torch's format before version 1.6; load it in torch and save it again: "
                    "torch.save(torch.load(old), new)"
                )
            if start[8:] == b"{":
                return _load_safetensors(file, int.from_bytes(start[:8], "little"))
            raise FormatError("neither safetensors nor a zip file of torch.save")
        except FormatError as error:
            raise FormatError(f"{os.fspath(path)}: {error}") from error.__cause__


def _load_safetensors(file: BufferedReader, header_size: int) -> dict[str, Array]:
    """Read a whole safetensors file; the library checks all but repeated names."""
    safetensors = import_extra("safetensors")
    file_size = os.fstat(file.fileno()).st_size
    if header_size > min(_MAX_HEADER, file_size - 8):
        raise FormatError(f"damaged safetensors (a header of {header_size} bytes)")
    file.seek(0)
    content = file.read()
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise FormatError(f"damaged safetensors ({error})") from error
    pairs = json.loads(content[8 : 8 + header_size], object_pairs_hook=list)
    if len({name for name, _ in pairs}) != len(pairs):
        raise FormatError("damaged safetensors (two tensors of one name)")
    arrays = {}
    for name, tensor in tensors:
        element = _ELEMENTS.get(tensor["dtype"])
        if element is None:
            raise FormatError(f"safetensors with elements {tensor['dtype']}, not supported")
        raw = np.frombuffer(tensor["data"], np.uint8)
        try:
            arrays[name] = decode_elements(raw, element).reshape(tensor["shape"])
        except (ValueError, OverflowError) as error:  # too many axes, or 0 times too much
            raise FormatError(f"damaged safetensors ({error})") from error
    return arrays


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
