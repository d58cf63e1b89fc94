"""Files of data sets: found or fetched, decompressed and unpacked without trust.

Whatever a file holds, memory and time are bounded, nothing is written to the
disk, and what is wrong with it becomes a `FormatError` with its path.
"""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from convkern.errors import DAMAGE, FormatError, import_extra, one_line, open_regular

#: A file, or an archive once decompressed; the largest of the CIFAR archives has 187 MB.
MAX_BYTES = 1 << 28
#: Readers take pieces of this size, so that memory grows only with what is really there.
_PIECE = 1 << 20
#: The archives have nine members at most; those of a copy may have a few more.
_MAX_MEMBERS = 64
_GZIP_MAGIC = b"\x1f\x8b"
_TIMEOUT_SECONDS = 30


class Readable(Protocol):
    """Anything that can be read once from front to back."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""


# ---------------------------------------------------------------- found or fetched


class Remote(NamedTuple):
    """A published file: where it is and what its MD5 is."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.url.rpartition("/")[2]


def data_folder() -> Path:
    """Return the folder in which data sets are looked for by default.

    It is named by the environment variable ``CONVKERN_DATA``; without it,
    ``convkern`` in the user's cache (``XDG_CACHE_HOME`` or ``~/.cache``).

    Examples
    --------
    >>> import os
    >>> from convkern.data import data_folder
    >>> os.environ["CONVKERN_DATA"] = "/data/sets"
    >>> data_folder().as_posix()
    '/data/sets'
    >>> del os.environ["CONVKERN_DATA"]
    """
    named = os.environ.get("CONVKERN_DATA")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "convkern"


def fetch(remote: Remote, folder: Path) -> Path:
    """Return the file in `folder`, downloaded if it is not there, and checked against its MD5."""
    pooch = import_extra("pooch", "data")
    try:
        return Path(
            pooch.retrieve(
                remote.url,
                f"md5:{remote.md5}",
                remote.name,
                folder,
                downloader=pooch.HTTPDownloader(timeout=_TIMEOUT_SECONDS),
            )
        )
    except ValueError as error:  # pooch has removed the file
        raise FormatError(f"{remote.url} is not the published file: {one_line(error)}") from error
    except OSError as error:
        raise ConnectionError(
            f"cannot download {remote.url} ({one_line(error)}); "
            f"fetch it by other means and put it at {folder / remote.name}"
        ) from error


def not_found(title: str, folder: Path, remotes: Sequence[Remote], how: str) -> FileNotFoundError:
    """Return the error that says which files are missing, and what to do."""
    urls = f" {how} ".join(remote.url for remote in remotes)
    return FileNotFoundError(
        f"no {title} in {folder}; put these files there, or pass download=True: {urls}"
    )


# ---------------------------------------------------------------- read


@contextmanager
def open_stream(path: str | os.PathLike[str]) -> Iterator[Readable]:
    """Open a file, decompressing it if it is gzip; damage found inside is a FormatError."""
    with open_regular(path) as file:
        try:
            if file.peek(2)[:2] == _GZIP_MAGIC:
                with gzip.GzipFile(fileobj=file) as stream:
                    yield stream
            else:
                yield file
        except FormatError as error:
            raise FormatError(f"{os.fspath(path)}: {error}") from error
        except (*DAMAGE, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
            raise FormatError(f"{os.fspath(path)}: a damaged file ({one_line(error)})") from error


def read_exactly(stream: Readable, size: int) -> bytearray:
    """Read `size` bytes; fewer are a FormatError."""
    content = bytearray()
    while len(content) < size:
        piece = stream.read(min(_PIECE, size - len(content)))
        if not piece:
            raise FormatError(f"truncated: {len(content)} bytes where {size} are declared")
        content += piece
    return content


def read_to_end(stream: Readable) -> bytearray:
    """Read all that there is; more than any file of a data set has is a FormatError."""
    content = bytearray()
    while piece := stream.read(_PIECE):
        content += piece
        if len(content) > MAX_BYTES:
            raise FormatError(f"more than {MAX_BYTES} bytes")
    return content


def expect_end(stream: Readable) -> None:
    """Raise unless all has been read; of gzip, this also compares the checksum."""
    if stream.read(1):
        raise FormatError("more bytes than are declared")


def read_members(
    source: Path, decoders: Mapping[str, Callable[[bytearray], Any]]
) -> dict[str, Any]:
    """Decode the members of an archive, or of the folder that it was unpacked to.

    Parameters
    ----------
    source : Path
        A tar archive, compressed or not, or a folder.
    decoders : mapping of str to callable
        What becomes of the content of each member, by its name in the archive.
        Of a folder only the last part of the name counts.

    Returns
    -------
    dict
        The results for those members that there are.
    """
    if not source.is_dir():
        with open_stream(source) as stream:
            return dict(_tar_members(stream, decoders))
    found = {}
    for name, decode in decoders.items():
        file = source / name.rpartition("/")[2]
        if file.exists():
            with open_stream(file) as stream:
                found[name] = decode(read_to_end(stream))
    return found


class _Bounded:
    """A stream that ends in a FormatError when an archive turns out to be endless."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._left = MAX_BYTES

    def read(self, size: int, /) -> bytes:
        piece = self._stream.read(size)
        self._left -= len(piece)
        if self._left < 0:
            raise FormatError(f"an archive of more than {MAX_BYTES} bytes")
        return piece


def _tar_members(
    stream: Readable, decoders: Mapping[str, Callable[[bytearray], Any]]
) -> Iterator[tuple[str, Any]]:
    """Decode the wanted members in the order of the archive, in memory; read it to its end."""
    seen = set()
    bounded: Any = _Bounded(stream)
    with tarfile.open(fileobj=bounded, mode="r|") as archive:
        for count, member in enumerate(archive):
            if count == _MAX_MEMBERS:
                raise FormatError(f"an archive of more than {_MAX_MEMBERS} members")
            name = member.name.removeprefix("./")
            if name.startswith("/") or ".." in name.split("/"):
                raise FormatError(f"an archive whose member {name[:80]!r} lies outside of it")
            if member.isdir():
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise FormatError(f"an archive whose member {name[:80]!r} is no regular file")
            if name not in decoders:
                continue
            if name in seen:
                raise FormatError(f"an archive with two members {name!r}")
            seen.add(name)
            content: IO[bytes] | None = archive.extractfile(member)
            assert content is not None  # as it is a regular file
            yield name, _decode_member(name, read_exactly(content, member.size), decoders[name])
        # tarfile takes a header that it cannot read for the end.
        rest: Any = archive.fileobj
        while piece := rest.read(_PIECE):
            if piece.strip(b"\0"):
                raise FormatError("a damaged archive (something follows its end)")


def _decode_member(name: str, content: bytearray, decode: Callable[[bytearray], Any]) -> Any:
    """Decode, and name the member in an error."""
    try:
        return decode(content)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error
