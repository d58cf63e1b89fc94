"""Memory against pages that nobody may touch."""

import ctypes
import mmap

import numpy as np


class Guarded:
    """An array between two pages that nobody may touch, against one of them."""

    page = mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def __init__(self, array, at_end):
        pages = -(-array.nbytes // self.page)
        self.memory = mmap.mmap(-1, (pages + 2) * self.page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        offset = self.page + (pages * self.page - array.nbytes if at_end else 0)
        self.array = np.frombuffer(self.memory, array.dtype, array.size, offset)
        self.array = self.array.reshape(array.shape)
        self.array[...] = array
        for page in (start, start + (pages + 1) * self.page):
            assert self.protect(page, self.page, mmap.PROT_READ & 0) == 0
