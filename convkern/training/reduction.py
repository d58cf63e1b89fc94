"""One step of several processes: their gradients added up as one flat array."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from convkern.nn import Layer, Parameter
from convkern.training.workers import Workers

Array = npt.NDArray[Any]


class Reduction:
    """The mean over the images of all processes, of all that a batch gives a net.

    That is the gradients and what layers note of their input, the running
    statistics of batch normalisation.  Each process has seen another number
    of images; with a weight of that number the mean is that of the whole batch.  One
    array holds everything, as one message is faster than many.

    Parameters
    ----------
    net : Layer
        The net, the same in all processes.
    workers : Workers
        The processes.

    Examples
    --------
    >>> import numpy as np
    >>> from convkern.nn import Linear
    >>> from convkern.training.reduction import Reduction
    >>> from convkern.training.workers import Alone
    >>> net = Linear(2, 1)
    >>> net.weight.add_grad(3 * np.ones((1, 2), np.float32))  # the sum over three images
    >>> Reduction(net, Alone()).mean(3, np.array([0.5]))
    array([0.5])
    >>> net.weight.grad
    array([[1., 1.]], dtype=float32)
    """

    def __init__(self, net: Layer, workers: Workers) -> None:
        self._net = net
        self._workers = workers
        self._flat = np.empty(0)

    def mean(self, images: int, sums: Array) -> Array:
        """Make means of the sums of gradients over `images` images of this process.

        Parameters
        ----------
        images : int
            How many this process has seen in the step, possibly none.
        sums : (S,) array
            Other numbers to add up over the processes.

        Returns
        -------
        (S,) array
            The sums of these numbers.
        """
        parameters = self._net.parameters()
        buffers = self._buffers()
        shapes = [p.data.shape for p in parameters] + [b.shape for b in buffers]
        values = [p.grad for p in parameters] + [b * images for b in buffers]
        ends = np.cumsum([0, *(value.size for value in values), len(sums), 1])
        dtype = np.result_type(np.float32, *(p.data.dtype for p in parameters))
        if self._flat.shape != (ends[-1],) or self._flat.dtype != dtype:
            self._flat = np.empty(ends[-1], dtype)
        flat = self._flat
        pieces = [flat[start:end] for start, end in pairwise(ends)]
        for piece, value in zip(pieces, [*values, sums, np.array(images)], strict=True):
            piece[:] = value.ravel()
        self._workers.add(flat)
        total = flat[-1]
        flat[: ends[-3]] /= total
        means = [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=False)]
        for parameter, mean in zip(parameters, means, strict=False):
            parameter.grad = mean.astype(parameter.data.dtype, copy=False)
        for buffer, mean in zip(buffers, means[len(parameters) :], strict=True):
            # A counter is the same wherever there were images.
            buffer[...] = np.rint(mean) if buffer.dtype.kind == "i" else mean
        return pieces[-2].astype(np.float64)

    def _buffers(self) -> list[Array]:
        """Return the arrays that layers note things in."""
        entries = self._net._entries()
        return [getattr(o, name) for _, o, name in entries if not isinstance(o, Parameter)]


def same_start(net: Layer, workers: Workers) -> None:
    """Give all processes the parameters and buffers of the first, and choices of their own.

    The generators of other processes than the first are seeded anew from theirs, so that
    each drops out other activations.

    Parameters
    ----------
    net : Layer
        The net.
    workers : Workers
        The processes.

    Examples
    --------
    >>> from convkern.nn import Linear
    >>> from convkern.training.reduction import same_start
    >>> from convkern.training.workers import Alone
    >>> same_start(Linear(2, 1), Alone())
    """
    if workers.size == 1:
        return
    for _, owner, name in net._entries():
        array = getattr(owner, name)
        copy = np.zeros(array.shape, array.dtype)
        if workers.rank == 0:
            copy[...] = array
        workers.add(copy)
        array[...] = copy
    for generator in net.generators():
        bits = generator.bit_generator
        if workers.rank:
            seed = np.random.SeedSequence([int(generator.integers(2**63)), workers.rank])
            bits.state = type(bits)(seed).state
