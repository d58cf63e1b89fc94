"""Plant faults in the kernels, one at a time, and see whether the tests notice them.

    python tools/mutants.py                # all faults, about 20 seconds each
    python tools/mutants.py --only pool    # those whose file or description says so
    python tools/mutants.py --list

The tree is copied to a temporary folder and built there with one instruction set and little
optimisation.  A fault replaces a text that occurs once in its file, so that a change of the kernel
asks for a look at its fault; then its module is built and the tests run, those of its operator
first, until one fails.  A crash and a run without end count as caught, a fault that cannot be built
does not.  Without any fault all tests must pass.  The exit status is 1 if fewer than 95 % are
caught.  It needs what the tests need, best with torch.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KERNELS = Path("convkern", "_kernels")
#: The least share of faults that must be caught.
WANTED = 0.95
#: Faults are planted in steps of so many through the table.
STEP = 4
#: A file of tests that takes longer than this many seconds has no end.
PATIENCE = 900
#: Fewer random shapes and calls than usual, and two threads: some faults are those of sharing.
#: Waiting threads sleep, as the processors may have other work.
ENVIRONMENT = {
    "CONVKERN_TEST_SHAPES": "400",
    "CONVKERN_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "passive",
}

#: All tests of a fault, in this order but for those that `FIRST` names for its file.
TESTS = [
    "tests/test_exact.py",
    "tests/test_pool.py",
    "tests/test_winograd.py",
    "tests/test_training.py",
    "tests/test_functional.py",
    "tests/test_dense.py",
    "tests/test_properties.py",
    "tests/test_freeze.py",
    "tests/test_nn_backward.py",
    "tests/test_against_torch.py",
]
_LANES = ["tests/test_lanes.py"]
_POOL = ["tests/test_pool.py", "tests/test_exact.py", "tests/test_containers.py"]
_DENSE = ["tests/test_dense.py"]
_CHANNELS = ["tests/test_dense.py", "tests/test_containers.py", "tests/test_nn_backward.py"]
_OPTIMIZER = ["tests/test_training.py"]
_WINOGRAD = ["tests/test_winograd.py"]
_DEPTHWISE = ["tests/test_depthwise.py", "tests/test_exact.py"]
FIRST = {
    "pool.inc": _POOL,
    "pool.pyx": _POOL,
    "activation.inc": _DENSE,
    "activation.pyx": _DENSE,
    "channels.inc": _CHANNELS,
    "channels.pyx": _CHANNELS,
    "conv.pyx": [*TESTS[:1], "tests/test_containers.py"],
    "core.pyx": [*TESTS[:1], "tests/test_hazards.py"],
    "memory.c": ["tests/test_memory.py"],
    "loss.pyx": ["tests/test_loss_norm.py"],
    "square.inc": _DEPTHWISE,
    "square.pyx": _DEPTHWISE,
    "optimizer.inc": _OPTIMIZER,
    "optimizer.pyx": _OPTIMIZER,
    "winograd.inc": _WINOGRAD,
    "winograd.pyx": _WINOGRAD,
    "winograd_gradient.pyx": _WINOGRAD,
    "blocks.pyx": _WINOGRAD,
    "lanes.inc": _LANES,
    "images_last.pyx": _LANES,
}


class Fault(NamedTuple):
    """One wrong line: its file, what stands there, what is put there, what is wrong with that."""

    file: str
    old: str
    new: str
    what: str

    @property
    def path(self) -> Path:
        """Where the file stands in the tree."""
        return KERNELS / self.file if self.file.endswith(".pyx") else KERNELS / "csrc" / self.file

    @property
    def module(self) -> str:
        """The extension module that is built of it."""
        return self.file.removesuffix(".pyx") if self.file.endswith(".pyx") else "core"

    @property
    def tests(self) -> list[str]:
        """What is run, most likely to fail first."""
        first = FIRST.get(self.file, [])
        return first + [test for test in TESTS if test not in first]


FAULTS = [
    # ------------------------------------------------------------ conv.inc
    Fault(
        "conv.inc",
        "vec a = v_set1((base[i / 3] + (i % 3) * x_pixel)[k]);",
        "vec a = v_set1((base[i / 3] + (i % 2) * x_pixel)[k]);",
        "the third pixel of a base pointer is its first",
    ),
    Fault(
        "conv.inc",
        ": v_load(bias + j * VL);",
        ": v_load(bias);",
        "every vector of channels gets the bias of the first",
    ),
    Fault(
        "conv.inc",
        "ptrdiff_t k = chunk->run;",
        "ptrdiff_t k = chunk->run & ~(ptrdiff_t)3;",
        "the last one to three products of a run are lost",
    ),
    Fault(
        "conv.inc",
        "v_store_n(out + i * out_pixel + j * VL, acc[i][j], j < NV - 1 ? VL : tail);",
        "v_store_n(out + i * out_pixel + j * VL, acc[i][j], VL);",
        "the last vector is stored whole, over the next pixel",
    ),
    Fault(
        "conv.inc",
        "if ((chunk->flags & CK_LAST) && layout->activation != CK_IDENTITY) {",
        "if (layout->activation != CK_IDENTITY) {",
        "the activation is applied to partial sums",
    ),
    Fault(
        "conv.inc",
        "acc[i][j] += v_load_n(out + i * out_pixel + j * VL, j < NV - 1 ? VL : tail);",
        "acc[i][j] += v_load_n(out + i * out_pixel, j < NV - 1 ? VL : tail);",
        "a later chunk adds to the first vector of the outputs",
    ),
    Fault(
        "conv.inc",
        "const real *xp = x + r * layout->x_row, *gp = g + r * layout->g_row;",
        "const real *xp = x + r * layout->x_row, *gp = g + r * layout->x_row;",
        "rows of gradients are as far apart as those of pixels",
    ),
    Fault(
        "conv.inc",
        "v_store(d, v_load(d) + acc[i][j]);",
        "v_store(d, acc[i][j]);",
        "products replace the gradient of the weight instead of being added",
    ),
    Fault(
        "conv.inc",
        "depthwise_outer_taps(STRIDE, ROWS, t, l, x + c, g + c, dw + c, sums, t->channels - c);",
        "depthwise_outer_taps(STRIDE, ROWS, t, l, x + c, g, dw + c, sums, t->channels - c);",
        "the last channels take the gradients of the first",
    ),
    Fault(
        "conv.inc",
        "for (int j = 0; j < width; j++) {",
        "for (int j = 0; j < width - 1; j++) {",
        "the last tap of a block's last pixel is skipped",
    ),
    Fault(
        "conv.inc",
        "if (c < t->channels)\n        depthwise_block(",
        "if (c + 1 < t->channels)\n        depthwise_block(",
        "a single channel behind whole vectors is forgotten",
    ),
    Fault(
        "conv.inc",
        "else if (t->columns == 3 && t->x_pixel == 2 * t->x_column)",
        "else if (t->columns == 3 && t->x_pixel == 3 * t->x_column)",
        "a stride of 3 is taken for one of 2",
    ),
    Fault(
        "conv.inc",
        "acc[i] = v_fma(v_load(tap + i * t->x_step), b, acc[i]);",
        "acc[i] = v_fma(v_load(tap + i * t->x_tap), b, acc[i]);",
        "rows of outputs are as far apart as rows of taps: stride and dilation swapped",
    ),
    Fault(
        "conv.inc",
        "const real *from = x + begin * t->x_pixel;",
        "const real *from = x;",
        "depthwise: later pieces of a row read from its beginning",
    ),
    Fault(
        "conv.inc",
        "const ptrdiff_t left = i == 0 ? t->left : 0, right",
        "const ptrdiff_t left = t->left, right",
        "depthwise: every piece of a row leaves out what the first one has beyond the edge",
    ),
    # ------------------------------------------------------------ columns.inc
    Fault(
        "columns.inc",
        "span = 4 * lanes - 3;",
        "span = 4 * lanes - 4;",
        "every fourth element: the last one is lost",
    ),
    Fault(
        "columns.inc",
        "for (ptrdiff_t i = end; i < n; i++)",
        "for (ptrdiff_t i = end + 1; i < n; i++)",
        "the first element in the right padding is not filled",
    ),
    Fault(
        "columns.inc",
        "i < n ? v_load_n(src + i, n - i) : (vec){0};",
        "i < n ? v_load(src + i) : (vec){0};",
        "a row is read beyond its end",
    ),
    Fault(
        "columns.inc",
        "dst[stride * i] += src[i];",
        "dst[stride * i] = src[i];",
        "col2im replaces instead of adding where the stride is not 1",
    ),
    Fault(
        "columns.inc",
        "memcpy(dst, src, UNIT * sizeof(real));",
        "memcpy(dst, src, (UNIT - 1) * sizeof(real));",
        "what a block has of a line loses its last element",
    ),
    # ------------------------------------------------------------ dense.inc
    Fault(
        "dense.inc",
        "(vec){0} : partial[i * NR + j];",
        "(vec){0} : partial[j * MR + i];",
        "partial sums come back with rows and columns swapped",
    ),
    Fault(
        "dense.inc",
        "const ptrdiff_t left = layout->length - k, n = left < VL ? left : VL;",
        "const ptrdiff_t n = VL;",
        "dot products go on beyond the end",
    ),
    Fault(
        "dense.inc",
        "(bias ? bias[j] : 0);",
        "(bias ? bias[0] : 0);",
        "four outputs get the bias of the first",
    ),
    Fault(
        "dense.inc",
        "transpose_block(s, src_row, d, dst_row, r < VL ? r : VL, c < VL ? c : VL);",
        "transpose_block(s, src_row, d, dst_row, c < VL ? c : VL, r < VL ? r : VL);",
        "a block at the edge is transposed with its sizes swapped",
    ),
    Fault(
        "dense.inc",
        "    if (rows == dst_row)\n        switch (rows)",
        "    if (rows <= dst_row)\n        switch (rows)",
        "a few rows are put next to each other where their columns are not",
    ),
    Fault(
        "dense.inc",
        "    if (columns == src_row)\n        switch (columns)",
        "    if (columns <= src_row)\n        switch (columns)",
        "a few columns are taken as if they lay next to each other",
    ),
    Fault(
        "dense.inc",
        "if (k < c && offsets[j + k] >= 0)",
        "if (k + 1 < c && offsets[j + k] >= 0)",
        "the last tap of the weights is not packed",
    ),
    Fault(
        "dense.inc",
        "(b & 255) << 16",
        "(b & 255) << 8",
        "bytes of every fourth weight of three come back in the wrong place",
    ),
    Fault(
        "dense.inc",
        "memcpy(last[i], x + i * t->x_pixel,",
        "memcpy(last[i], x,",
        "the end of a sum of three-byte weights takes the first row for all",
    ),
    # ------------------------------------------------------------ pool.inc
    Fault(
        "pool.inc",
        "v_greater(v, *max) | v_unordered(v, v);",
        "v_greater(v, *max);",
        "NaN is no maximum",
    ),
    Fault(
        "pool.inc",
        "const choice take = ordered ? v_greater(v, *max) :",
        "const choice take = ordered ? ~v_greater(*max, v) :",
        "the last of equal maxima wins",
    ),
    Fault(
        "pool.inc",
        "where = load_offsets(t.first + i);",
        "where = load_offsets(t.first);",
        "all vectors of a row begin with the offsets of the first",
    ),
    Fault(
        "pool.inc",
        "i + VL <= t.width ? i : t.width - VL, VL, out, indices, index);",
        "i, VL, out, indices, index);",
        "the last vector of a row hangs over its end",
    ),
    Fault(
        "pool.inc",
        "real *odd = dst + (left + 1) % 2 * length + (left + 1) / 2;",
        "real *odd = dst + (left + 1) % 2 * length + left / 2;",
        "odd elements are one off where the padding is odd",
    ),
    Fault(
        "pool.inc",
        "fill_least(phase, rows, row, end, used);",
        "fill_least(phase, rows, row, end + 1, used);",
        "the first element in the right padding is not filled",
    ),
    Fault(
        "pool.inc",
        "*place = add ? *place + src[c] : src[c];",
        "*place = src[c];",
        "gradients of overlapping windows are not added up",
    ),
    Fault(
        "pool.inc",
        "ready = next;",
        "ready = next + 1;",
        "some places are not zeroed",
    ),
    Fault(
        "pool.inc",
        "out[i] += first[i] + s < past[i] ? sum : 0;",
        "out[i] += first[i] + s <= past[i] ? sum : 0;",
        "a box has one column too many",
    ),
    Fault(
        "pool.inc",
        "if (r == 0 || begin[r] != begin[r - 1] || end[r] != end[r - 1])",
        "if (r == 0 || begin[r] != begin[r - 1])",
        "a box that begins like the one above has no column sums",
    ),
    Fault(
        "pool.inc",
        "return y ? v_select(v_load_n(y, n) <= zero, zero, v) : v;",
        "return y ? v_select(v_load_n(y, n) < zero, zero, v) : v;",
        "where the ReLU before a pooling gave 0, gradients pass",
    ),
    Fault(
        "pool.inc",
        "return (mask)v_even(v[0], v[1]) - (lane_int)base;",
        "return (mask)v_even(v[0], v[1]);",
        "indices of later windows name no tap",
    ),
    Fault(
        "pool.inc",
        "i + VL <= t.width ? i : t.width - VL, VL, index);",
        "i, VL, index);",
        "the last vector of a pixel's gradients hangs over its end",
    ),
    Fault(
        "pool.inc",
        "map = map_at((const real *)t.map->coefficients + i, t.map->channels, n);",
        "map = map_at((const real *)t.map->coefficients, t.map->channels, n);",
        "all vectors of channels are normalised as the first",
    ),
    Fault(
        "pool.inc",
        "mapping == RECTIFYING ? CK_RELU : CK_IDENTITY",
        "CK_IDENTITY",
        "maxima below zero pass the ReLU between normalisation and pooling",
    ),
    Fault(
        "pool.inc",
        "product[half] = wide_fma(widened(max, half) - middle[half], other, product[half]);",
        "product[half] = wide_fma(widened(max, half), other, product[half]);",
        "products with pooled gradients are not about the mean",
    ),
    Fault(
        "pool.inc",
        "v_load_n(x + t->taps[r * t->tap_row + s], n), max);",
        "v_load_n(x + t->taps[s], n), max);",
        "the pixel that a gradient belongs to is taken from the first row of its window",
    ),
    # ------------------------------------------------------------ winograd.inc
    Fault(
        "winograd.inc",
        "copy[i][j] = j >= patch->first && j < patch->last \\",
        "copy[i][j] = j >= patch->first && j <= patch->last \\",
        "the first column of the right padding is not zero",
    ),
    Fault(
        "winograd.inc",
        "const int whole = patch->first == 0 && patch->last == FROM; \\",
        "const int whole = patch->last == FROM; \\",
        "the left padding is read from the row before",
    ),
    Fault(
        "winograd.inc",
        "for (int j = 0; j < target->columns; j++) \\",
        "for (int j = 0; j < TO; j++) \\",
        "tiles at the right edge write into the next row",
    ),
    Fault(
        "winograd.inc",
        "const vec shift = bias ? v_load_n(bias + c, lanes) : (vec){0}; \\",
        "const vec shift = bias ? v_load_n(bias, lanes) : (vec){0}; \\",
        "every vector of channels gets the bias of the first",
    ),
    Fault(
        "winograd.inc",
        "v_store(pixel, activate(y[j] + shift, activation, (vec){0})); \\",
        "v_store(pixel, y[j] + shift); \\",
        "the ReLU of whole tiles is lost",
    ),
    Fault(
        "winograd.inc",
        "activate(copy[i][j], activation, slope), lanes); \\",
        "copy[i][j], lanes); \\",
        "the activation of tiles at an edge is lost",
    ),
    # ------------------------------------------------------------ channels.inc
    Fault(
        "channels.inc",
        "for (c = 0; c < channels; c += WL)\n            pixel_sums_vector(term, x + c, g + c,",
        "for (c = 0; c < channels; c += WL)\n            pixel_sums_vector(term, x + c, g,",
        "sums in registers take gradients of the first channels",
    ),
    Fault(
        "channels.inc",
        "pixel_sums_rows(1, term, x + p * row, g + p * row, row, channels, sums);",
        "pixel_sums_rows(1, term, x, g, row, channels, sums);",
        "the last pixels of a sum are the first one again",
    ),
    Fault(
        "channels.inc",
        "sum[0] += sum[1] + (sum[2] + sum[3]);",
        "sum[0] += sum[1] + sum[2];",
        "one of four partial sums is lost",
    ),
    Fault(
        "channels.inc",
        "p++, x += channels, g += channels, y += channels)",
        "p++, x += channels, y += channels)",
        "all pixels take the gradient of the first",
    ),
    Fault(
        "channels.inc",
        "const ptrdiff_t before = size / 2;",
        "const ptrdiff_t before = (size - 1) / 2;",
        "windows of even size lie one channel off",
    ),
    Fault(
        "channels.inc",
        "v_store_n(terms + (size - 1) / 2 + c,",
        "v_store_n(terms + size / 2 + c,",
        "on the way back windows of even size lie one channel off",
    ),
    Fault(
        "channels.inc",
        "map.shift) <= (vec){0}, (vec){0}, g);",
        "map.shift) < (vec){0}, (vec){0}, g);",
        "the gradient passes where the normalised value is zero",
    ),
    Fault(
        "channels.inc",
        "activate(after_relu ? v_select(x <= (vec){0}",
        "activate(after_relu ? v_select(y <= (vec){0}",
        "a ReLU's gradient passes where it is positive itself",
    ),
    Fault(
        "channels.inc",
        "(const char *)&v + half * (int)sizeof part",
        "(const char *)&v",
        "the upper half of a vector is summed as the lower",
    ),
    Fault(
        "channels.inc",
        "if (k == HALVES && step == 1)",
        "if (k > HALVES && step == 1)",
        "after the last whole vector of a plane a half is taken twice, or beyond the end",
    ),
    Fault(
        "channels.inc",
        "*second += sum_of_lanes(v * other, n - i - half * WL);",
        "*second += sum_of_lanes(v * other, n - i);",
        "lanes behind the end of a plane enter its sum",
    ),
    # ------------------------------------------------------------ activation.inc, kernels.c
    Fault(
        "activation.inc",
        "(scale ? v_load_n(scale + j, n) : v_set1(1))",
        "(scale ? v_load_n(scale, n) : v_set1(1))",
        "every vector of columns has the factors of the first",
    ),
    Fault(
        "activation.inc",
        "p++, x += channels, g += channels, y += channels)",
        "p++, x += channels, y += channels)",
        "all pixels take the gradient of the first",
    ),
    Fault(
        "activation.inc",
        "result = v_select(v <= zero, zero, grad);",
        "result = v_select(v < zero, zero, grad);",
        "the gradient passes where the output is zero",
    ),
    Fault(
        "activation.inc",
        "return sum * v_power_of_two(half) * v_power_of_two(n - half);",
        "return sum * v_power_of_two(n);",
        "exponents out of range wrap around",
    ),
    Fault(
        "kernels.c",
        "return v_select(v < zero, zero, v);",
        "return v_select(v > zero, v, zero);",
        "ReLU makes zero of NaN",
    ),
    # ------------------------------------------------------------ optimizer.inc
    Fault(
        "optimizer.inc",
        "down = rule->nesterov ? down + speed * kept : speed;",
        "down = rule->nesterov ? speed * kept : speed;",
        "Nesterov's step forgets the gradient",
    ),
    Fault(
        "optimizer.inc",
        "second = v_select(second <= before, before, second);",
        "second = v_select(second >= before, before, second);",
        "AMSGrad keeps the smallest square",
    ),
    Fault(
        "optimizer.inc",
        "g + p * v_set1((real)weight_decay) : g;",
        "g - p * v_set1((real)weight_decay) : g;",
        "weights grow instead of decaying",
    ),
    Fault(
        "pool.pyx",
        "for i in range(grad.shape[0] * job.blocks):",
        "for i in range(grad.shape[0]):",
        "sums of gradients behind a pooling lack all but the first blocks of rows",
    ),
    Fault(
        "pool.pyx",
        "job.map, job.pixels + at, NULL, job.grad_input + at,",
        "job.map, job.pixels, NULL, job.grad_input + at,",
        "pixels that no window meets have the gradients of the first",
    ),
    # ------------------------------------------------------------ memory.c, core.pyx
    Fault(
        "memory.c",
        "size_t bytes = LINE + size;",
        "size_t bytes = size;",
        "a block is one line too small",
    ),
    Fault(
        "memory.c",
        "if (idle[i].size >= bytes && (best < 0",
        "if (idle[i].size >= bytes / 2 && (best < 0",
        "a kept block is taken although it is too small",
    ),
    Fault(
        "memory.c",
        "if (recent[i].size == bytes)",
        "if (recent[i].size >= bytes / 2)",
        "a recent block is taken although it is too small",
    ),
    Fault(
        "memory.c",
        "if (block == NULL && mapped_bytes + bytes > LITTLE) {",
        "if (block == NULL && recent_count > MOST_RECENT) {",
        "recent blocks are not joined, however much is mapped",
    ),
    Fault(
        "memory.c",
        "    if (recent_count == MOST_RECENT)\n        settle();\n",
        "",
        "more recent blocks are noted than there are places",
    ),
    Fault(
        "memory.c",
        "set.shared >= shared && set.stride >= bytes && ",
        "set.shared >= shared && ",
        "kept scratch memory is taken although it is too small",
    ),
    Fault(
        "memory.c",
        "        set_bytes -= size_of(&set);\n",
        "",
        "scratch memory in use counts as idle, the longer the more",
    ),
    Fault(
        "core.pyx",
        "scratch + memory.stride * <size_t>threadid())",
        "scratch)",
        "threads share their scratch memory",
    ),
    Fault(
        "core.pyx",
        "shares[i].end = start + (stop - start) * (i + 1) // threads",
        "shares[i].end = start + (stop - start) // threads * (i + 1)",
        "the last item is nobody's where the threads do not divide their number",
    ),
    Fault(
        "core.pyx",
        "                        shares[i].kept = (shares",
        "                        shares[i].kept = shares[i].lent = (shares",
        "what a thread keeps is lost where it does not come",
    ),
    Fault(
        "core.pyx",
        "            start = stop\n",
        "            start = stop + 1\n",
        "after a look at pending signals an item is skipped",
    ),
    Fault(
        "core.pyx",
        "min(a.kernel, ceil_div(-origin, a.dilation))",
        "min(a.kernel, -origin // a.dilation)",
        "a dilated window begins one tap outside the image",
    ),
    Fault(
        "core.pyx",
        "(image * job.dst_image + start * job.dst_row + row) * size,",
        "(image * job.dst_image + start * job.src_row + row) * size,",
        "later blocks of a transpose go to wrong rows",
    ),
    Fault(
        "core.pyx",
        "ceil_div(columns, job.block), ceil_div(rows, BAND)",
        "ceil_div(columns, job.block), max(1, rows // BAND)",
        "the rows behind the last whole band of a transpose are lost",
    ),
    Fault(
        "core.pyx",
        "axes[<int>order[i]] = i",
        "axes[i] = order[i]",
        "axes that were permuted for their memory are permuted once more",
    ),
    # ------------------------------------------------------------ conv.pyx, strips.pyx
    Fault(
        "conv.pyx",
        "        if r >= tap_rows:\n",
        "        if r + row_step >= tap_rows:\n",
        "a sum of several chunks ends before the last",
    ),
    Fault(
        "conv.pyx",
        "        chunk.flags = 0\n",
        "        chunk.flags = CK_FIRST\n",
        "every chunk begins anew from the bias",
    ),
    Fault(
        "conv.pyx",
        "e1 = run_length if piece == pieces - 1 else",
        "e1 = run_length if pieces == 1 else",
        "of many channels in several pieces the last one to three are lost",
    ),
    Fault(
        "conv.pyx",
        "cdef const char *bias = job.bias + (group * job.vectors * lanes + block.first) * size",
        "cdef const char *bias = job.bias + block.first * size",
        "every group gets the bias of the first",
    ),
    Fault(
        "conv.pyx",
        "weight + columns.first * job.groups * size, bias,",
        "weight, bias,",
        "depthwise: at the left edge the first tap stands for the first inside",
    ),
    Fault(
        "conv.pyx",
        "window.right = max(<Py_ssize_t>0, beyond(&job.w))",
        "window.right = 0",
        "depthwise: windows at the right edge hold the next row's first pixel",
    ),
    Fault(
        "conv.pyx",
        "return max(0, (count - 1) * h.stride + (h.kernel - 1) * h.dilation + 1)",
        "return max(0, (count - 1) * h.stride + h.kernel)",
        "strips are too short for dilated windows",
    ),
    Fault(
        "conv.pyx",
        "if job.h.kernel == 1 and job.h.pad == 0 and",
        "if job.h.kernel == 1 and",
        "rows of windows of one row ignore the padding",
    ),
    Fault(
        "conv.pyx",
        "cdef Py_ssize_t rows = ceil_div(job.h.out, job.row_blocks)",
        "cdef Py_ssize_t rows = job.h.out // job.row_blocks",
        "scratch memory is a row too small where rows are not shared out evenly",
    ),
    Fault(
        "conv.pyx",
        "(first_row * job.out_row + first_column * job.out_column)",
        "(first_row * job.out_column + first_column * job.out_row)",
        "phases of a stride go to transposed places",
    ),
    Fault(
        "conv.pyx",
        "region.bottom = ceil_div(out.bottom - part.first_row, part.row_step)",
        "region.bottom = (out.bottom - part.first_row) // part.row_step",
        "phases of a stride lack the last row of a strip",
    ),
    Fault(
        "conv.pyx",
        "min(all_.top, region.top), max(all_.bottom, region.bottom)",
        "all_.top, max(all_.bottom, region.bottom)",
        "strips begin where the first phase of a stride needs them, not all",
    ),
    Fault(
        "strips.pyx",
        "kernels.transpose(strip + y * width * pixel * size, pixel,",
        "kernels.transpose(strip + y * width * channels * size, pixel,",
        "rows of outputs are read without their padding",
    ),
    Fault(
        "strips.pyx",
        "first * plane + region.top * planes.row + region.left) * size\n    if area",
        "first * plane + region.top * planes.row) * size\n    if area",
        "strips always begin at the left edge",
    ),
    # ------------------------------------------------------------ lanes.inc, images_last.pyx
    Fault(
        "lanes.inc",
        "const vec sum = first ? acc[f][p] : acc[f][p] + v_load(o);",
        "const vec sum = acc[f][p];",
        "of several chunks of channels the last alone counts",
    ),
    Fault(
        "lanes.inc",
        "v_store(sum, v_load(sum) + acc[f][s]);",
        "v_store(sum, acc[f][s]);",
        "of several pieces of a weight's gradient the last alone counts",
    ),
    Fault(
        "images_last.pyx",
        "taps - 1 - (p + a.pad) // a.stride, 1)",
        "taps - 1 - p // a.stride, 1)",
        "the gradient of the input knows no padding",
    ),
    Fault(
        "images_last.pyx",
        "begin = max(begin, ceil_div(max(<Py_ssize_t>0, h.pad - r), h.stride))",
        "begin = max(begin, max(<Py_ssize_t>0, h.pad - r) // h.stride)",
        "windows above the image are added to the gradient of the weight",
    ),
    Fault(
        "images_last.pyx",
        "return vectors if stretch.step == stretch.source_step == 1 else 1",
        "return vectors",
        "with a stride, too, all places of a row are in even steps",
    ),
    Fault(
        "images_last.pyx",
        "if row.before % widest == 0:",
        "if row.before == 0:",
        "of a narrow stretch only the first tile of its rows is computed",
    ),
    Fault(
        "images_last.pyx",
        "layout.rows, layout.x_pixel, layout.g_pixel = 1, layout.x_row, layout.g_row",
        "layout.rows, layout.x_pixel, layout.g_pixel = 1, layout.g_row, layout.g_row",
        "down a narrow stretch, pixels are as far apart as gradients",
    ),
    # ------------------------------------------------------------ planes.pyx, planes_gradient.pyx
    Fault(
        "planes.pyx",
        "y = row * job.h.stride + r * job.h.dilation - job.h.pad",
        "y = row * job.h.stride + r - job.h.pad",
        "rows of taps are not dilated",
    ),
    Fault(
        "planes.pyx",
        "moved(bias, row * size) if layout.bias_by_pixel else bias,",
        "bias,",
        "every tile of filters gets the bias of the first",
    ),
    Fault(
        "planes.pyx",
        "else panel.count - (panel.vectors - 1) * kernels.lanes)",
        "else kernels.lanes)",
        "the last vector of a plane is stored whole, over the next plane",
    ),
    Fault(
        "planes.pyx",
        "    memset(zeros, 0, <size_t>(job.width * size))\n",
        "",
        "what stands for a missing bias is not cleared",
    ),
    Fault(
        "planes.pyx",
        "<size_t>(((job.group * job.depth + 1) * job.width + length) * kernels.itemsize))",
        "<size_t>((job.group * job.depth * job.width + length) * kernels.itemsize))",
        "scratch memory is a row too small",
    ),
    Fault(
        "planes.pyx",
        "chunk.flags = (CK_FIRST if k == 0 else 0)",
        "chunk.flags = CK_FIRST",
        "later chunks of a sum begin from the bias",
    ),
    Fault(
        "planes.pyx",
        "b += length * (layout.w_step if layout.w_step else panel.width) * size",
        "b += length * panel.width * size",
        "later chunks of a panel that is read in place are those of a packed one",
    ),
    Fault(
        "planes.pyx",
        "+ panel.column + panel.width) <= job.elements",
        "+ panel.column + panel.width) <= job.elements + panel.width",
        "the last plane is read beyond its end",
    ),
    Fault(
        "planes.pyx",
        "length = min(count - done, job.pixels - pixel)",
        "length = count - done",
        "a panel of joined planes ends in the image in which it begins",
    ),
    # ------------------------------------------------------------ bands.pyx
    Fault(
        "bands.pyx",
        "if start + (end - 1) * w.stride >= w.size:",
        "if start + end * w.stride > w.size + w.stride:",
        "the last windows of a row read beyond it",
    ),
    Fault(
        "bands.pyx",
        "packed += job.h.stride * job.channels * job.w.kernel * panel.width * size",
        "packed += job.channels * job.w.kernel * panel.width * size",
        "windows of a band are a row apart whatever the stride",
    ),
    Fault(
        "bands.pyx",
        "chunk.flags = ((CK_FIRST | CK_CLAIM if k == 0 else 0)",
        "chunk.flags = (CK_FIRST | CK_CLAIM",
        "later chunks of windows begin from the bias",
    ),
    Fault(
        "bands.pyx",
        "rows_of_input(h, rows) * packed_row))",
        "rows_of_input(h, rows - 1) * packed_row))",
        "scratch memory of a band is a stride too small",
    ),
    Fault(
        "planes_gradient.pyx",
        "flags = (CK_FIRST if chunk == first else 0)",
        "flags = (CK_FIRST if chunk == 0 else 0)",
        "later slices begin from what was in memory",
    ),
    Fault(
        "planes_gradient.pyx",
        "for part in range(1, job.slices):",
        "for part in range(2, job.slices):",
        "the second slice is lost",
    ),
    Fault(
        "planes_gradient.pyx",
        "partial + (i * taps + rows * j) * vector,",
        "partial + (i * taps + j) * vector,",
        "partial sums of neighbouring tiles overlap",
    ),
    # ------------------------------------------------------------ gradients of a convolution
    Fault(
        "grad_weight.pyx",
        "job.ranges * job.h.kernel * job.blocks * job.groups",
        "job.ranges * job.h.kernel * job.blocks",
        "the second group is taken for the second slice",
    ),
    Fault(
        "grad_weight.pyx",
        "start[0] = max(start[0], ceil_div(max(0, lead), a.stride))",
        "start[0] = max(start[0], max(0, lead) // a.stride)",
        "the first output of a tap lies in the padding",
    ),
    Fault(
        "grad_weight.pyx",
        "dw + (s * job.channels + c) * block.width * size, &layout, c_stop - c, block)",
        "dw + s * job.channels * block.width * size, &layout, c_stop - c, block)",
        "later ranges of channels go to the first",
    ),
    Fault(
        "grad_input.pyx",
        "lead = (count - 1) * gap - (first + pad - taps[0] * dilation) // stride",
        "lead = (count - 1) * gap - (first + pad) // stride",
        "a phase of the stride begins at a wrong output where windows are dilated",
    ),
    Fault(
        "grad_weight.pyx",
        "a = max(a, inner_stop)",
        "a = max(a, inner)",
        "outputs whose taps are folded count twice",
    ),
    Fault(
        "grad_input.pyx",
        "(out, count, steps + reach, steps, reach - first * steps, 1), pad % block",
        "(out, count, steps + reach, steps, reach - first * steps, 1), pad % stride",
        "blocks of several strides begin at a wrong pixel",
    ),
    Fault(
        "grad_weight.pyx",
        "        for part in range(1, job.slices):\n            kernels.add(dw + part",
        "        for part in range(1, job.slices - 1):\n            kernels.add(dw + part",
        "the last slice is lost",
    ),
    Fault(
        "winograd_gradient.pyx",
        "if turned < TURNED and i < job.run - 1:",
        "if turned < TURNED:",
        "the last tiles of a run stay behind where they are turned round",
    ),
    Fault(
        "grad_weight.pyx",
        "begin, last = ceil_div(max(0, job.w.pad - f), stride),",
        "begin, last = max(0, job.w.pad - f) // stride,",
        "turned round, the first pixel of a phase lies in the padding",
    ),
    Fault(
        "grad_weight.pyx",
        "min(job.phase, last // stride + 1)",
        "min(job.phase, last // stride)",
        "turned round, a phase lacks the last pixel",
    ),
    Fault(
        "grad_weight.pyx",
        "+ s * job.w.dilation % job.w.stride * job.phase\n",
        "+ s % job.w.stride * job.phase\n",
        "turned round, dilated taps lie in a wrong phase of the stride",
    ),
    Fault(
        "grad_weight.pyx",
        "    memset(scratch, 0, <size_t>(channels * job.channel * size))  # the padding, once\n",
        "",
        "turned round, the padding is not zeroed",
    ),
    Fault(
        "grad_weight.pyx",
        "rows = (rows - 1) * job.h.stride + (job.h.kernel - 1) * job.h.dilation + 1",
        "rows = (rows - 1) * job.h.stride + job.h.kernel",
        "turned round, channels of dilated windows overlap",
    ),
    Fault(
        "grad_weight.pyx",
        "sums.flags = CK_FIRST if piece.first else 0",
        "sums.flags = 0",
        "the first piece is added to what was in memory",
    ),
    Fault(
        "grad_weight.pyx",
        "scratch + i * job.image * size)",
        "scratch)",
        "small images that are joined lie over each other",
    ),
    Fault(
        "grad_weight.pyx",
        "job.fresh and number == begin",
        "job.fresh",
        "every piece begins its sums anew",
    ),
    Fault(
        "grad_weight.pyx",
        "job.fresh = n == 0",
        "job.fresh = True",
        "every group of images begins the sums anew",
    ),
    Fault(
        "grad_weight.pyx",
        "if sums.columns == 0 and not piece.first:",
        "if sums.columns == 0:",
        "sums without a row in the first piece do not begin with zero",
    ),
    Fault(
        "grad_weight.pyx",
        "last_block = job.blocks * (item % job.block_ranges + 1) // job.block_ranges",
        "last_block = first_block + job.blocks // job.block_ranges",
        "the last block of filters is lost where ranges are not equal",
    ),
    Fault(
        "grad_weight.pyx",
        "* job.channels + c * block.width) * size\n    for r in",
        "* job.channels) * size\n    for r in",
        "later ranges of turned channels go to the first",
    ),
    Fault(
        "grad_weight.pyx",
        "and (not job.turned or job.g.column == job.out_channels\n",
        "and (True or job.g.column == job.out_channels\n",
        "gradients between which others lie are taken for dense ones",
    ),
    Fault(
        "pointwise_gradient.pyx",
        "cdef Py_ssize_t items = job.ranges * job.block_ranges * job.groups",
        "cdef Py_ssize_t items = job.block_ranges * job.groups",
        "the second range of channels is taken for the second slice",
    ),
    Fault(
        "pointwise_gradient.pyx",
        "if job.g_in_place and block.first + block.width <= job.out_channels:",
        "if job.g_in_place:",
        "gradients are read beyond the last filter",
    ),
    Fault(
        "pointwise_gradient.pyx",
        "(place // length + 1) * length))",
        "(place // length + 2) * length))",
        "a chunk in place is longer than a panel",
    ),
    Fault(
        "pointwise_gradient.pyx",
        "job.grad_bias != NULL and begin + channels == job.channels",
        "job.grad_bias != NULL and begin == 0",
        "the first range of channels makes the gradient of the bias",
    ),
    # ------------------------------------------------------------ packing.pyx, blocks.pyx
    Fault(
        "packing.pyx",
        "job.weights.data + item * job.weights.bytes, scratch)",
        "job.weights.data, scratch)",
        "all threads pack the first one's copy",
    ),
    Fault(
        "packing.pyx",
        "tap = (job.rows.first + r * job.rows.step) * job.kw",
        "tap = (job.rows.first + r) * job.kw",
        "rows of taps are taken one after the other whatever their step",
    ),
    Fault(
        "packing.pyx",
        "k0 + c * job.out_channels if job.transposed else",
        "k0 + c if job.transposed else",
        "transposed weights: later channels are read from a wrong place",
    ),
    Fault(
        "packing.pyx",
        "memset(self.bias, 0, <size_t>((padded + lanes) * size))",
        "memset(self.bias, 0, <size_t>(lanes * size))",
        "what stands for a missing bias is cleared for the first vector only",
    ),
    Fault(
        "packing.pyx",
        "memcpy(self.bias + g * self.vectors * lanes * size,",
        "memcpy(self.bias + g * biases * size,",
        "the bias of later groups lies a few lanes off",
    ),
    Fault(
        "blocks.pyx",
        "    memset(to, 0, <size_t>(job.unit * job.size))\n    memcpy",
        "    memcpy",
        "the padding of blocks at the edge is not zeroed",
    ),
    Fault(
        "blocks.pyx",
        "cdef Py_ssize_t place = (row + job.top) % job.block_rows",
        "cdef Py_ssize_t place = row % job.block_rows",
        "rows come from a wrong place of their block where there is padding",
    ),
    Fault(
        "blocks.pyx",
        "min(job.columns, (job.width + job.left) // job.unit))",
        "min(job.columns, ceil_div(job.width + job.left, job.unit)))",
        "the last block of a row reads beyond it",
    ),
    # ------------------------------------------------------------ winograd.pyx
    Fault(
        "winograd.pyx",
        "CK_ALSO | (0 if piece else CK_FIRST)",
        "CK_ALSO | CK_FIRST",
        "of many channels only the last chunk is summed",
    ),
    Fault(
        "winograd.pyx",
        "job.bias + padded * size, first, filters, strip)",
        "job.bias + part.first * size, first, filters, strip)",
        "every group gets the bias of the first",
    ),
    Fault(
        "winograd.pyx",
        "            + job.unit * piece // job.pieces)",
        "            + 0 * piece)",
        "of rows cut into pieces only some are computed",
    ),
    Fault(
        "winograd.pyx",
        "return (ceil_div(tiles, job.across) * step + margin) * width",
        "return tiles // job.across * step * width",
        "scratch memory is too small for the rows that strips have",
    ),
    Fault(
        "winograd.pyx",
        "(group * elements * job.v_element + begin * job.v_tile) * size",
        "group * elements * job.v_element * size",
        "groups of tiles all read the first where the threads share them",
    ),
    Fault(
        "winograd.pyx",
        "min(height, last_row * step + size - top))",
        "min(height, (last_row + 1) * step - top))",
        "strips lack the rows that the last tiles share with the next",
    ),
    Fault(
        "winograd.pyx",
        "step = job.tile.outputs * job.tile.stride\n",
        "step = job.tile.outputs\n",
        "tiles of a stride of 2 begin as if it were 1",
    ),
    Fault(
        "winograd.pyx",
        "job.across if job.x_planes or job.planes else 1",
        "job.across if job.planes else 1",
        "groups of tiles begin amid a row of planes",
    ),
    # ------------------------------------------------------------ winograd_gradient.pyx
    Fault(
        "winograd_gradient.pyx",
        "count = min(lanes, job.channels - c)",
        "count = lanes",
        "channels behind the last are added to the next block",
    ),
    Fault(
        "winograd_gradient.pyx",
        "sums.flags = CK_FIRST if fresh else 0",
        "sums.flags = 0",
        "the sums do not begin with zero",
    ),
    Fault(
        "winograd_gradient.pyx",
        "(begin + i < end and tile % job.per_image == 0)):\n                x = strip_for",
        "False):\n                x = strip_for",
        "the pixels of a run are those of its first image",
    ),
    Fault(
        "winograd_gradient.pyx",
        "first = item % parts * PAIRS",
        "first = item // parts * PAIRS",
        "parts of a slice are transformed in another's place",
    ),
    Fault(
        "winograd_gradient.pyx",
        "for i in range(1, job.slices):",
        "for i in range(1, job.slices - 1):",
        "the last slice is lost",
    ),
    Fault(
        "winograd_gradient.pyx",
        "y + (block.first * job.run + i * block.width) * size, job.y_element,",
        "y + (block.first + i * block.width) * size, job.y_element,",
        "blocks of filters overlap",
    ),
    Fault(
        "winograd_gradient.pyx",
        "element != job.tile.size + 1",
        "element != job.tile.size",
        "the gradient of the bias is of values at another point than (1, 1)",
    ),
    Fault(
        "winograd_gradient.pyx",
        "chunk.flags, chunk.ahead = CK_FIRST if fresh else 0, sums",
        "chunk.flags, chunk.ahead = CK_FIRST, sums",
        "only the last tiles count for the gradient of the bias",
    ),
    # ------------------------------------------------------------ pool.pyx
    Fault(
        "pool.pyx",
        "pool.index = at_row * job.w.size + at_column",
        "pool.index = at_row * job.w.out + at_column",
        "channels-last: indices count with the width of the output",
    ),
    Fault(
        "pool.pyx",
        "many = image * job.size * job.channels + first",
        "many = image * job.size * job.channels",
        "later blocks of channels go to the first",
    ),
    Fault(
        "pool.pyx",
        "job.boxes.run_begin, job.boxes.run_end = start, j\n",
        "job.boxes.run_begin, job.boxes.run_end = start, min(j + 1, job.width)\n",
        "the run of equal boxes has one too many",
    ),
    Fault(
        "pool.pyx",
        "\n                  and (job.w.out - 1) * stride + extent <= job.w.size)",
        ")",
        "windows over the right edge see the next row",
    ),
    Fault(
        "pool.pyx",
        "s = max(0, ceil_div(job.w.pad - o * stride, job.w.dilation))",
        "s = max(0, (job.w.pad - o * stride) // job.w.dilation)",
        "a dilated window of padding alone has an index outside the image",
    ),
    Fault(
        "pool.pyx",
        "covered = job.covered if r < first + rows else 0",
        "covered = job.covered",
        "gradients of rows that no window meets are not zeroed",
    ),
    Fault(
        "pool.pyx",
        "    if job.w.stride <= job.w.kernel:\n",
        "    if True:\n",
        "gradients of columns between windows are not zeroed",
    ),
    # ------------------------------------------------------------ columns.pyx, dense.pyx
    Fault(
        "columns.pyx",
        "min(a.out, 0 if past <= 0 else ceil_div(past, a.stride)))",
        "min(a.out, 0 if past <= 0 else past // a.stride))",
        "the last window of a tap is taken for one in the padding",
    ),
    Fault(
        "columns.pyx",
        "if at < 0 or at % job.h.stride or at // job.h.stride >= job.h.out:",
        "if at < 0 or at // job.h.stride >= job.h.out:",
        "rows that a tap does not meet get its columns too",
    ),
    Fault(
        "dense.pyx",
        "            layout.flags &= ~CK_FIRST\n",
        "",
        "every chunk of a long sum begins anew",
    ),
    Fault(
        "dense.pyx",
        "scratch + ((i - batch) * LINEAR_ROWS + rows * (j - begin)) * vector,",
        "scratch + rows * (j - begin) * vector,",
        "rows of the batch share their partial sums",
    ),
    Fault(
        "dense.pyx",
        "product(job.kernels, job.weight, job.bias, x, out,",
        "product(job.kernels, job.weight, NULL, x, out,",
        "a large batch loses its bias",
    ),
    Fault(
        "dense.pyx",
        "stop = job.inputs * (piece + 1) // pieces & ~3",
        "stop = job.inputs * (piece + 1) // pieces",
        "a sum of three-byte weights is cut within four of them",
    ),
    Fault(
        "dense.pyx",
        "biases[i] = (<const float *>cnp.PyArray_DATA(bias))[i]",
        "biases[i] = (<const float *>cnp.PyArray_DATA(bias))[0]",
        "few rows get the bias of the first output",
    ),
    # ------------------------------------------------------------ depthwise.pyx
    Fault(
        "depthwise.pyx",
        "job.out + (i * job.h.out + row) * job.w.out * size)",
        "job.out + i * job.h.out * job.w.out * size)",
        "all rows of a large plane are written over its first",
    ),
    Fault(
        "depthwise.pyx",
        "    memset(scratch, 0, <size_t>(job.together * copy))\n",
        "    memset(scratch, 0, <size_t>copy)\n",
        "only the first of the planes that are copied together lies between zeros",
    ),
    Fault(
        "blocks.pyx",
        "job.column_step, job.row_step * job.width, job.rows,",
        "job.column_step, job.column_step * job.width, job.rows,",
        "the pixels of every step are taken with the columns' step for rows",
    ),
    # ------------------------------------------------------------ windows of 3x3 over planes
    Fault(
        "square.inc",
        "v_between(-column, least(t->width - column, wanted));",
        "v_between(-column, t->width - column);",
        "lanes behind the last output meet pixels of the padding's other side",
    ),
    Fault(
        "square.inc",
        "if (first >= 0 && first + 2 + STRIDE * VL <= t->width && j + VL <= t->columns)",
        "if (first + 2 + STRIDE * VL <= t->width && j + VL <= t->columns)",
        "what lies before a row is taken for its padding",
    ),
    Fault(
        "square.inc",
        "a[0] = v_choose(taps->inside[1], v_previous(a[1]), (vec){0});",
        "a[0] = v_previous(a[1]);",
        "an infinity at the end of a narrow row meets a gradient of zero behind it",
    ),
    Fault(
        "square.inc",
        "a[0] = v_choose(taps->lanes, a[0], (vec){0});",
        ";",
        "an infinity in the last column of stride 2 meets a gradient of zero behind the outputs",
    ),
    Fault(
        "square.inc",
        "if (STRIDE == 1 && k >= 1 && k <= rows)",
        "if (STRIDE == 1 && k >= 1 && k < rows)",
        "the last row of gradients of a band does not meet the middle row of taps",
    ),
    Fault(
        "square.inc",
        "end = least(t->rows, i + band);\n        for",
        "end = i + band;\n        for",
        "a last band of fewer rows writes behind its plane",
    ),
    Fault(
        "square.inc",
        "earlier = v_between(1 - j, t->columns + 1 - j);",
        "earlier = v_between(1 - j, t->columns - j);",
        "the last gradient of a row does not reach the last pixel",
    ),
    Fault(
        "square.pyx",
        "if channel == job.channels:",
        "if channel > job.channels:",
        "the second image has the windows of the first one's next channel",
    ),
    Fault(
        "square.pyx",
        "turned_w = axis(w.out, w.size, (3, 1, 2 - w.pad, 1))",
        "turned_w = axis(w.out, w.size, (3, 1, w.pad, 1))",
        "only a padding of 1 is turned round with the window",
    ),
    Fault(
        "square.pyx",
        "two = job.pairs and channel + 1 < job.channels and plane + 1 < stop",
        "two = job.pairs and plane + 1 < stop",
        "an image's last plane is paired with the next one's first, whose window is another",
    ),
    Fault(
        "square.pyx",
        "from_ = (c - c % 2) * step + 2 * tap + c % 2",
        "from_ = c * step + 2 * tap",
        "both channels of a pair get sums of the first one",
    ),
    Fault(
        "square.inc",
        "taps.after = square_halves(0, STRIDE == 1 ? n - 1 : VL / 2 - 1);",
        "taps.after = v_first(VL);",
        "behind the last pixel of half a vector comes the first of the other plane",
    ),
    Fault(
        "square.inc",
        "taps.lanes = square_halves(0, n), taps.before = square_halves(1, n);",
        "taps.lanes = square_halves(0, n), taps.before = square_halves(0, n);",
        "before the first pixel of half a vector comes the last of the other plane",
    ),
    Fault(
        "square.inc",
        "const choice followers = square_halves(1, least(VL / 2, t->columns + 1));",
        "const choice followers = square_halves(0, least(VL / 2, t->columns + 1));",
        "the last gradient of a plane reaches the first pixel of the other of a pair",
    ),
    Fault(
        "depthwise_gradient.pyx",
        "(part * (job.h.kernel * job.w.kernel + job.bias) * job.channels",
        "(part * job.h.kernel * job.w.kernel * job.channels",
        "sums of a slice for the bias are the first tap of the next",
    ),
    Fault(
        "depthwise_gradient.pyx",
        "for k in range(1, job.slices):",
        "for k in range(2, job.slices):",
        "the second slice is lost",
    ),
    Fault(
        "depthwise.pyx",
        "offsets[s] = s * job.w.dilation % job.w.stride * job.phase + (",
        "offsets[s] = s % job.w.stride * job.phase + (",
        "dilated taps lie in a wrong phase of the stride",
    ),
    # ------------------------------------------------------------ channels.pyx
    Fault(
        "channels.pyx",
        "            scale *= weight[c]\n",
        "            scale *= weight[0]\n",
        "all channels are scaled like the first",
    ),
    Fault(
        "channels.pyx",
        "gain = inverse * weight[c] if weight != NULL else inverse",
        "gain = inverse",
        "the gradient of a normalisation knows no weight",
    ),
    Fault(
        "channels.pyx",
        "other[c] += count * shift * shift",
        "other[c] += shift * shift",
        "the means of the pieces have no weight in the variance",
    ),
    Fault(
        "channels.pyx",
        "return min(job.images, job.unit - n) * min(job.part, job.inner - p)",
        "return min(job.images, job.unit - n) * job.part",
        "the last piece of a plane counts as a whole one",
    ),
    Fault(
        "channels.pyx",
        "job.kernels.affine_plane(&job.affine, plane % channels,",
        "job.kernels.affine_plane(&job.affine, (plane - first) % channels,",
        "items begin with the coefficients of the first channel",
    ),
    Fault(
        "channels.pyx",
        "map = moved(job.rectified, c0 * kernels.itemsize)",
        "map = job.rectified",
        "sums of later groups of channels pass the ReLU of the first",
    ),
    Fault(
        "channels.pyx",
        "job.center[c0 + c], moved(map, c * kernels.itemsize), images,",
        "job.center[c0 + c], map, images,",
        "gradients of all planes of a group pass the ReLU of its first channel",
    ),
    Fault(
        "channels.pyx",
        "            first[c] += count * mean[0]\n",
        "            first[c] += mean[0]\n",
        "the mean of a plane is that of its differences from the first element",
    ),
    Fault(
        "channels.pyx",
        "for item in range(image * items, (image + 1) * items):",
        "for item in range(image * items, image * items + 1):",
        "of an image that is complete only the first piece is added up",
    ),
    Fault(
        "channels.pyx",
        "arrivals.scratch + image * job.group * sizeof(double))",
        "arrivals.scratch)",
        "threads that complete images share one scratch",
    ),
    Fault(
        "channels.pyx",
        "    n0 += piece // job.parts // job.per_unit * job.unit\n",
        "    pass\n",
        "pieces of every image are those of the first",
    ),
    Fault(
        "conv.pyx",
        "        if row < part.h.out:\n",
        "        if row < job.parts[0].job.h.out:\n",
        "a depthwise part writes rows beyond its last",
    ),
    Fault(
        "conv.pyx",
        "        if (not planes and job.arrivals == NULL and job.x_image == job.w.size",
        "        if (not planes and job.x_image == job.w.size",
        "images that are one row of pixels come all as the first",
    ),
    # ------------------------------------------------------------ loss.pyx
    Fault(
        "loss.pyx",
        "losses[o * inner + i] -= sample[c * inner] * share",
        "losses[o * inner + i] -= sample[c] * share",
        "smoothing reads neighbouring samples in place of classes",
    ),
    Fault(
        "loss.pyx",
        "        if classes.target[i] != classes.ignored:\n",
        "        if True:\n",
        "what is ignored has a weight in the mean",
    ),
    Fault(
        "loss.pyx",
        "spread += classes.spread * weight_of(classes, c)",
        "spread += classes.spread",
        "the shares of a sample do not add up to those that are subtracted",
    ),
    # ------------------------------------------------------------ activation.pyx, optimizer.pyx
    Fault(
        "optimizer.pyx",
        "        if first < reach:\n            return True\n",
        "        if first < 0:\n            return True\n",
        "parameters that share memory make their steps at once",
    ),
    Fault(
        "activation.pyx",
        "+ first * (job.length if job.inner == 1 else 1)) * size",
        "+ first) * size",
        "later blocks of rows begin at wrong places",
    ),
    Fault(
        "activation.pyx",
        "        if job.activation:\n",
        "        if job.activation and i == item * BLOCK:\n",
        "only the first piece of a sum is activated",
    ),
    Fault(
        "optimizer.pyx",
        "if job.tensors[middle].first <= item:",
        "if job.tensors[middle].first < item:",
        "the first item of a tensor belongs to the one before",
    ),
    Fault(
        "optimizer.pyx",
        "piece.start = (item - piece.tensor.first) * BLOCK",
        "piece.start = (item - piece.tensor.first) * BLOCK // 2",
        "items of a large tensor overlap",
    ),
]

#: Builds modules of the tree it stands in: with the second instruction set if there are several,
#: in the place of the portable one, and with little optimisation.
BUILD = """
import sys
from distutils.core import run_setup
import setuptools

wanted = sys.argv[1:]
distribution = run_setup("setup.py", ["-q", "build_ext", "--inplace", "--force"], "commandline")
settings = distribution.cmdclass["build_ext"].compile_kernels.__globals__
settings["FLAGS"][0] = "-O1"
isas = settings["ISAS"]
name = list(isas)[min(1, len(isas) - 1)]
settings["ISAS"] = {"baseline": [*isas[name], f"-DCK_ISA_{name.upper()}"]}
distribution.ext_modules = [
    extension
    for extension in distribution.ext_modules
    if not wanted or extension.name.rpartition(".")[2] in wanted
]
distribution.run_commands()
"""


class Tree:
    """A built copy of the tree in which one fault at a time is planted."""

    def __init__(self, folder: str) -> None:
        self.root = Path(folder, "tree")
        self.kept = Path(folder, "kept")
        unwanted = shutil.ignore_patterns(".*", "build", "*.so", "__pycache__")
        shutil.copytree(ROOT, self.root, ignore=unwanted)
        built = self.build()
        if built.returncode:
            sys.exit(f"the tree cannot be built:\n{built.stdout}")
        shutil.copytree(self.root / KERNELS, self.kept)

    def build(self, *modules: str) -> subprocess.CompletedProcess[str]:
        """Build some extension modules, or all of them."""
        return self.run("-c", BUILD, *modules)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the tree."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )

    def test(self, files: list[str]) -> str:
        """Run files of tests until one fails; return how it fails, or an empty string."""
        return next(filter(None, map(self.test_file, files)), "")

    def test_file(self, file: str) -> str:
        """Run one file of tests until one of them fails."""
        options = ["-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        try:
            done = self.run(*options, file)
        except subprocess.TimeoutExpired:
            return f"{file}: no end in {PATIENCE} s"
        if done.returncode < 0:
            return f"{file}: killed by signal {-done.returncode}"
        if done.returncode == 0:
            return ""
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[-1].split(" - ")[0].split()[1] if failed else done.stdout[-2000:]

    @contextmanager
    def changed(self, fault: Fault) -> Iterator[None]:
        """Have a fault in the source, and take back afterwards all that was made with it."""
        path = self.root / fault.path
        path.write_text(path.read_text().replace(fault.old, fault.new))
        try:
            yield
        finally:
            # With their times, or what has not changed would be built again.
            made = [self.kept / fault.path.relative_to(KERNELS)]
            made += [*self.kept.glob(f"{fault.module}.c"), *self.kept.glob(f"{fault.module}.*.so")]
            for file in made:
                shutil.copy2(file, self.root / KERNELS / file.relative_to(self.kept))

    def catches(self, fault: Fault) -> bool:
        """Plant a fault, print what becomes of it, and tell whether a test has caught it."""
        start = time.monotonic()
        with self.changed(fault):
            built = self.build(fault.module)
            found = self.test(fault.tests) if built.returncode == 0 else ""
        outcome = f"caught: {found}" if found else "SURVIVED"
        if built.returncode:
            outcome = f"NOT BUILT\n{built.stdout}"
        seconds = time.monotonic() - start
        print(f"{fault.file}: {fault.what}\n    {outcome} ({seconds:.0f} s)", flush=True)
        return bool(found)


def misplaced(faults: list[Fault]) -> list[str]:
    """Return what is wrong with the table: every old text must stand once in its file."""
    counts = [(fault, (ROOT / fault.path).read_text().count(fault.old)) for fault in faults]
    return [
        f"{fault.file}: {fault.what}: its text occurs {count} times, must be once"
        for fault, count in counts
        if count != 1
    ]


def main() -> int:
    """Plant the faults and return the exit status."""
    parser = argparse.ArgumentParser(description="Plant faults; see whether the tests notice them.")
    parser.add_argument("--only", default="", help="faults whose file or description has this text")
    parser.add_argument("--list", action="store_true", help="print the faults and end")
    chosen = parser.parse_args()
    faults = [fault for fault in FAULTS if chosen.only in f"{fault.file}: {fault.what}"]
    if wrong := misplaced(FAULTS):
        sys.exit("\n".join(wrong))
    if chosen.list:
        print(*(f"{fault.file}: {fault.what}" for fault in faults), sep="\n")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(folder)
        if failed := tree.test(TESTS):
            sys.exit(f"without any fault a test fails: {failed}")
        # From all files in turn: what an interrupted run has planted is spread over the kernels.
        spread = [fault for first in range(STEP) for fault in faults[first::STEP]]
        caught = sum(tree.catches(fault) for fault in spread)
    print(f"caught {caught} of {len(faults)}")
    return int(caught < WANTED * len(faults))


if __name__ == "__main__":
    sys.exit(main())
