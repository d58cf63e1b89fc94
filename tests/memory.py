"""Arrays at the edge of what may be touched, and how much memory is in use."""

import ctypes
import mmap
import tracemalloc
from contextlib import contextmanager

import numpy as np


def guarded(array, at_end):
    """Return a copy between two pages that nobody may touch, against one of them."""
    page, protect = mmap.PAGESIZE, ctypes.CDLL(None).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    pages = -(-array.nbytes // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    offset = page + (pages * page - array.nbytes if at_end else 0)
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    for address in (start, start + (pages + 1) * page):
        assert protect(address, page, 0) == 0
    return copy


@contextmanager
def little_memory(limit=1 << 26):
    """Fail if more than `limit` bytes are in use at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
