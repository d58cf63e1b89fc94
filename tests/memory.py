"""Arrays at the edge of what may be touched."""

import ctypes
import mmap

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
