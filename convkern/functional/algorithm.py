"""Which algorithm computes a convolution: a small model of what each costs.

Costs are counted in multiply-adds of one vector of lanes.  The constants were fitted to
measurements of shapes from 16 to 512 channels and 7 to 112 pixels on AVX-512; they weigh
parts of the work against each other, and vary little between machines.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from convkern import _kernels

ALGORITHMS = ("auto", "direct", "winograd")

#: Outputs of a Winograd tile on each axis, for the taps of the window: those of each level.
TILES: dict[str, dict[int, tuple[int, ...]]] = {
    "highest": {3: (2,)},
    "high": {3: (2, 4, 5), 4: (3, 4, 5), 5: (2, 3, 4)},
}
#: The same for a stride of 2, whose transforms are sums of two or three elements: of all levels.
STRIDED_TILES: dict[int, tuple[int, ...]] = {3: (2,)}
#: The same for the gradient of a weight, where the outputs are what is multiplied with.
GRADIENT_TILES: dict[str, dict[int, tuple[int, ...]]] = {
    "highest": {3: (2,)},
    "high": {3: (2, 4, 5), 4: (3, 4), 5: (2, 3)},
}

#: Transforming one vector of one element, there or back.
TRANSFORM = 12.0
#: What all that costs with a stride of 2, where more elements for an output leave the cache.
STRIDED = 1.1
#: Packing one vector of weights: it is read once, and its elements are written.
PACK = 20.0
#: The same two for a gradient, whose elements and sums go from one processor to another; and
#: what its phases, one after the other, cost in any case.
TRANSFORM_GRADIENT = 15.0
PACK_GRADIENT = 15.0
PHASES_GRADIENT = 1e5
#: Fetching one vector of weights from the outer caches; tiles that share it hide that.
FETCH = 24.0
#: Tiles that share what is fetched.
SHARING = 64
#: Multiply-adds with pixels of planes in the lanes, against those with channels.
PLANES = 1.02
#: Copying one vector of the windows for that, which lies together or is picked out by stride; and
#: how much of it where rows fill their vectors and are copied once for all windows (see bands.pyx).
COPY_TAPS = 40.0
PICK_TAPS = 80.0
COPY_ROWS = 0.5
#: Bringing a vector of pixels of planes into channels-last order, and of outputs back.
GATHER = 10.0
PLACE = 60.0
#: Where the pixels of an image fill less of their vectors, planes are joined (see planes.pyx).
MOST_FULL = 0.85
#: Images that packed weights are taken to be for, as their number has no say.
SHARED_BY = 16
#: Of a vector, how much a row of a depthwise window fills at least to be convolved in planes;
#: less for the window that needs no copies of them; and the fewest columns of it where two planes
#: share a vector, as they do with a padding of 1.
ROW = 0.6
ROW_OF_3X3 = 0.4
FEWEST_OF_3X3 = 4
#: Channels whose gradients of weights are made in planes.
FEW_CHANNELS = 4
#: Filters that share the pixels which the gradient of a 1x1 window's weight packs: for more of
#: them, those that a stride meets in planes are better picked out once, before.
SHARING_FILTERS = 256
#: Vectors of filters that are few for the gradient of a 1x1 window's weight, or of channels.
FEW_VECTORS = 8
#: Multiply-adds with images in the lanes, and bringing a vector of them there or back.
LANES = 2.0
TURN = 80.0
#: Filters, and pairs of a channel and a filter, up to which images in the lanes win; more pairs, of
#: windows of so many taps on each axis without a stride.
FEW_FILTERS = 32
FEW_PAIRS = 320
MORE_PAIRS = 512
MANY_TAPS = 3
#: Channels and filters from which on Winograd's algorithm wins over that.
ENOUGH_CHANNELS = 16


class Problem(NamedTuple):
    """One convolution, as an algorithm sees it."""

    dtype: np.dtype[Any]
    images: int
    channels: int  #: of the input, in a group
    out_channels: int  #: in a group
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    out_size: tuple[int, int]

    @property
    def dense(self) -> bool:
        """Whether stride and dilation are 1."""
        return self.stride == self.dilation == (1, 1)

    def made_dense(self, **changes: Any) -> Problem:
        """Return a problem without stride or dilation that does the same work in blocks."""
        return self._replace(stride=(1, 1), dilation=(1, 1), **changes)


def winograd_outputs(
    problem: Problem,
    algorithm: str,
    precision: str,
    prepacked: bool = False,
    gradient: bool = False,
    instead: Problem | None = None,
    strides: bool = False,
) -> int:
    """Return the outputs of the Winograd tile to use, on each axis; 0: compute directly.

    `precision` is the level that was in force.  With `gradient` it is the weight's gradient
    that is computed.  `instead` is what the direct algorithm would compute, if that is
    something else.  With `strides` the convolution may have a stride of 2.
    """
    accepted = (GRADIENT_TILES if gradient else TILES)[precision]
    kh, kw = problem.kernel
    fits = kh == kw and problem.dtype == np.float32
    tiles = accepted.get(kh, ()) if fits and problem.dense else ()
    if strides and fits and (problem.stride, problem.dilation) == ((2, 2), (1, 1)):
        tiles = STRIDED_TILES.get(kh, ())
    if algorithm == "winograd":
        if not tiles:
            windows = " or ".join(f"{r}x{r}" for r in accepted)
            steps = "of these" if problem.dense else "of others"
            strided = ", or a 3x3 window of stride 2" if strides else ""
            raise ValueError(
                f'algorithm="winograd" at precision {precision!r} needs float32 and a {windows} '
                f"window of stride and dilation 1{strided}, got {kh}x{kw} {steps}, {problem.dtype}"
            )
        pack = 0.0 if prepacked else PACK
        return min(tiles, key=lambda m: winograd_cost(problem, m, pack, TRANSFORM))
    if algorithm == "direct" or not tiles:
        return 0
    instead = instead or problem
    if precision == "highest":
        # The choice must not depend on the batch.
        problem, instead = problem._replace(images=16), instead._replace(images=16)
        prepacked = True
    return _cheapest(problem, instead, tiles, prepacked, gradient)


@lru_cache(maxsize=4096)
def _cheapest(
    problem: Problem, instead: Problem, tiles: tuple[int, ...], prepacked: bool, gradient: bool
) -> int:
    """Return the best of the Winograd tiles for a problem, or 0 for the other one, directly."""
    pack = PACK_GRADIENT if gradient else 0.0 if prepacked else PACK
    transform = TRANSFORM_GRADIENT if gradient else TRANSFORM
    phases = PHASES_GRADIENT if gradient else 0.0

    def cost(outputs: int) -> float:
        return phases + winograd_cost(problem, outputs, pack, transform)

    best = min(tiles, key=cost)
    direct = direct_cost(instead, 0.0 if prepacked or gradient else PACK)
    return best if cost(best) < direct else 0


def gradient_in_planes(problem: Problem) -> bool:
    """Tell whether the gradient of a weight is better made from contiguous NCHW as it lies.

    That is for few channels, of images whose planes fill most of their vectors.
    """
    lanes: int = _kernels.lanes(problem.dtype)
    pixels = problem.out_size[0] * problem.out_size[1]
    return problem.channels <= FEW_CHANNELS and pixels > 0.8 * lanes * -(-pixels // lanes)


def turns_gradient(problem: Problem, channels_last: bool) -> bool:
    """Tell whether the gradient of a 1x1 window's weight had better have channels in its vectors.

    Filters are there otherwise.  Transposing is dear: channels-last pixels, unless they are the
    vectors, and planes, if they are.
    """
    lanes: int = _kernels.lanes(problem.dtype)
    few, many = problem.out_channels, problem.channels
    if not channels_last:
        few, many = many, few
    return few < many and few <= FEW_VECTORS * lanes


@lru_cache(maxsize=4096)
def prefers_planes(problem: Problem) -> bool:
    """Tell whether contiguous NCHW images are better convolved directly where they lie.

    Then vectors hold pixels of one output plane, of which the last may have few; otherwise
    they hold channels, and pixels and outputs are brought from one order into the other.
    The number of images has no say, because the two differ in rounding.
    """
    if problem.channels == problem.out_channels == 1:
        # Channels share vectors, but these are too few.
        return problem.groups < int(_kernels.lanes(problem.dtype))
    return _planes_cost(problem) < _strips_cost(problem)


def _planes_cost(problem: Problem) -> float:
    """Return what an image of one group costs in planes."""
    lanes: int = _kernels.lanes(problem.dtype)
    pixels = problem.out_size[0] * problem.out_size[1]
    taps = problem.kernel[0] * problem.kernel[1]
    copies = 0.0
    filled: float = -(-pixels // lanes)
    if taps > 1 or problem.stride != (1, 1):
        copies = COPY_TAPS if problem.stride[1] == 1 else PICK_TAPS
        rows = problem.out_size[0] * -(-problem.out_size[1] // lanes)
        if taps > 1 and problem.dilation[0] == 1 and pixels >= MOST_FULL * lanes * rows:
            copies, filled = copies * COPY_ROWS, rows
    if not copies and problem.groups == 1 and pixels < MOST_FULL * lanes * filled:
        filled = pixels / lanes  # joined with those of other images
    products = filled * problem.channels * taps
    return products * (problem.out_channels * PLANES + copies)


def _strips_cost(problem: Problem) -> float:
    """Return what an image of one group costs in channels-last strips."""
    in_vectors, vectors = _vectors(problem)
    pixels = problem.out_size[0] * problem.out_size[1]
    products = problem.channels * problem.kernel[0] * problem.kernel[1]
    step = problem.stride[1] * min(problem.stride[0], problem.kernel[0])
    copies = pixels * (GATHER * step * in_vectors + PLACE * vectors)
    return products * vectors * (pixels + PACK / SHARED_BY) + copies


def is_square(problem: Problem) -> bool:
    """Tell whether each channel has windows of 3x3 of its own, of stride 1 or 2."""
    own = problem.channels == 1 < problem.groups and problem.kernel == (3, 3)
    return own and problem.dilation == (1, 1) and problem.stride in ((1, 1), (2, 2))


def fills_rows(problem: Problem, padding: tuple[int, int]) -> bool:
    """Tell whether contiguous NCHW images, of padded columns, are better convolved row by row.

    That is for channels with filters of their own, whose rows fill vectors well.  Vectors of
    channels, which strips have, must first be brought together; but few channels fill few of them.
    """
    lanes: int = _kernels.lanes(problem.dtype)
    columns = problem.out_size[1]
    if problem.channels > 1 or problem.groups == 1:
        return False
    if not is_square(problem):
        return columns > ROW * lanes
    shared = padding == (1, 1) and FEWEST_OF_3X3 <= columns <= lanes // 2
    return shared or columns > ROW_OF_3X3 * lanes


@lru_cache(maxsize=4096)
def prefers_images_in_lanes(
    dtype: np.dtype[Any],
    channels: int,
    filters: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
) -> bool:
    """Tell whether a convolution and its gradients are faster with images in the lanes.

    Vectors of images are always full, whereas those of few channels are not, neither of the
    outputs nor of the input's gradient.  The sizes of the images have no say, because a net
    has one layout for maps of all sizes.
    """
    winograd = (
        kernel[0] == kernel[1]
        and kernel[0] in TILES["high"]
        and stride == (1, 1)
        and dtype == np.float32
        and min(channels, filters) >= ENOUGH_CHANNELS
    )
    # Up to 16 of either are one vector, whose tiles load a pixel for each multiply-add.  A stride
    # cuts windows into phases of few taps.
    long = stride == (1, 1) and min(kernel) >= MANY_TAPS
    pairs = MORE_PAIRS if long else FEW_PAIRS
    few = filters <= FEW_FILTERS and channels * filters <= pairs
    return few and kernel != (1, 1) and not winograd


def pays_for_lanes(problem: Problem) -> bool:
    """Tell whether contiguous NCHW images had better be brought images-last and back again."""
    sizes = problem.dtype, problem.channels, problem.out_channels
    if problem.images % 16 or not prefers_images_in_lanes(*sizes, problem.kernel, problem.stride):
        return False
    outputs = problem.out_size[0] * problem.out_size[1] * problem.out_channels
    pixels = problem.out_size[0] * problem.out_size[1] * problem.stride[0] * problem.stride[1]
    products = outputs * problem.channels * problem.kernel[0] * problem.kernel[1]
    cost = products * LANES + (pixels * problem.channels + outputs) * TURN
    return cost / _kernels.lanes(problem.dtype) < min(_planes_cost(problem), _strips_cost(problem))


def _vectors(problem: Problem) -> tuple[int, int]:
    """Return the vectors of a group's channels and output channels."""
    lanes: int = _kernels.lanes(problem.dtype)
    return -(-problem.channels // lanes), -(-problem.out_channels // lanes)


def direct_cost(problem: Problem, pack: float) -> float:
    """Return the cost of the direct algorithm, and of packing each vector of weights."""
    _, vectors = _vectors(problem)
    weights = problem.kernel[0] * problem.kernel[1] * problem.channels * vectors
    pixels = problem.images * problem.out_size[0] * problem.out_size[1]
    return problem.groups * weights * (pixels + pack)


def winograd_cost(problem: Problem, outputs: int, pack: float, transform: float) -> float:
    """Return the cost of Winograd's algorithm with a tile of so many outputs.

    `pack` and `transform` are the costs of one vector of weights and of elements.
    """
    in_vectors, vectors = _vectors(problem)
    elements = ((outputs - 1) * problem.stride[0] + problem.kernel[0]) ** 2
    down, across = (-(-size // outputs) for size in problem.out_size)
    tiles = problem.images * down * across
    weights = elements * problem.channels * vectors
    fetches = -(-tiles // SHARING)
    products = weights * max(tiles, FETCH * fetches)
    transforms = tiles * elements * (in_vectors + vectors) * transform
    total = problem.groups * (products + transforms + weights * pack)
    return total if problem.dense else STRIDED * total
