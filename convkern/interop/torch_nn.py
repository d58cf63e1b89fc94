"""Turn networks into those of ``torch.nn``; needs torch."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from convkern import nn
from convkern.errors import import_extra

#: Layers whose output is new memory that nobody else reads, not even for the gradient.
_FRESH = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.Linear, nn.Residual, nn.Concat)


def to_torch(layer: nn.Layer, *, inplace: bool = False) -> Any:
    """Return a network's twin in torch, with a copy of its weights.

    Parameters
    ----------
    layer : Layer
        A layer or a net of the layers of `convkern.nn`.
    inplace : bool
        Let a `ReLU` overwrite the output of a convolution, normalisation, linear layer,
        `Residual` or `Concat` right before it, as torchvision's nets do.

    Returns
    -------
    torch.nn.Module
        It computes what `layer` computes, in the same mode and dtype.  A layer that stands
        in the net several times is one module there.  The keys of its ``state_dict`` are
        those of `layer`; where a name is empty, which torch does not allow, it is ``_``.

    Raises
    ------
    TypeError
        If `layer` is not a layer, or has a layer of another type inside.
    ValueError
        If a convolution has paddings that differ between two sides, which torch's have not.
    ImportError
        If torch is not installed.

    Examples
    --------
    >>> from convkern.interop.torch_nn import to_torch
    >>> from convkern.nn import Conv2d, ReLU, Sequential
    >>> to_torch(Sequential(("conv", Conv2d(3, 8, 3)), ("relu", ReLU())))
    Sequential(
      (conv): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (relu): ReLU()
    )
    """
    if not isinstance(layer, nn.Layer):
        raise TypeError(f"layer must be a convkern.nn.Layer, got {layer!r}")
    import_extra("torch", "torch")
    return _Twins(inplace).of(layer)


class _Twins:
    """The modules made so far; a layer that is met again has the same one."""

    def __init__(self, inplace: bool) -> None:
        self.inplace = inplace
        self.made: dict[nn.Layer, Any] = {}

    def of(self, layer: nn.Layer) -> Any:
        """Return the twin of a layer, in its mode."""
        if layer not in self.made:
            self.made[layer] = self._make(layer)
            self.made[layer].training = layer.training
        return self.made[layer]

    def _make(self, layer: nn.Layer) -> Any:
        """Return a new twin; exact types, because a subclass may compute something else."""
        import torch

        modules = OrderedDict((name or "_", self.of(child)) for name, child in layer._children())
        if type(layer) is nn.Sequential:
            if self.inplace:
                modules.update(_inplace_relus(layer))
            return torch.nn.Sequential(modules)
        if type(layer) is nn.Concat:
            return _side_by_side()(modules, _concatenate)
        if type(layer) is nn.Residual:
            if layer.shortcut is None:
                modules[layer.names[1] or "_"] = torch.nn.Identity()
            return _side_by_side()(modules, torch.add)
        return _leaf(layer)


def _inplace_relus(net: nn.Sequential) -> dict[str, Any]:
    """Return twins of the ReLUs that may work in place, by name."""
    import torch

    return {
        name or "_": torch.nn.ReLU(inplace=True).train(layer.training)
        for (_, before), (name, layer) in pairwise(net._children())
        if type(layer) is nn.ReLU and type(before) in _FRESH
    }


@cache
def _side_by_side() -> Any:
    """Return the class of modules that share an input; made only where torch is there."""
    import torch

    class SideBySide(torch.nn.ModuleDict):
        def __init__(self, modules: dict[str, Any], join: Callable[..., Any]) -> None:
            super().__init__(modules)
            self.join = join

        def forward(self, input: Any) -> Any:
            return self.join(*(module(input) for module in self.values()))

    return SideBySide


def _concatenate(*outputs: Any) -> Any:
    """Join tensors along the channels, of vectors the last axis."""
    import torch

    return torch.cat(outputs, -3 if outputs[0].ndim > 2 else -1)


def _leaf(layer: nn.Layer) -> Any:
    """Return the twin of a layer with no others inside.

    Names are the same in torch, so the attributes of a layer are the arguments of its twin.
    """
    import torch

    name = type(layer).__name__
    if type(layer) is not getattr(nn, name, None):
        raise TypeError(f"layer must be made of the layers of convkern.nn, got {layer!r}")
    kind = getattr(torch.nn, name)
    state = layer.state_dict()
    given = vars(layer) | {
        "bias": "bias" in state,
        "affine": "weight" in state,
        "track_running_stats": "running_mean" in state,
        "num_parameters": len(state.get("weight", ())),
    }
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(layer.padding, str):
        given["padding"] = _padding(layer)
    names = inspect.signature(kind).parameters.keys() & given.keys()
    with torch.device("meta"):  # the weights come below
        module = kind(**{name: given[name] for name in names})
    tensors = {key: torch.tensor(np.asarray(value, order="C")) for key, value in state.items()}
    module.load_state_dict(tensors, assign=True)
    return module


def _padding(layer: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, ...]:
    """Return the padding of both axes, which must be the same on both sides."""
    if any(before != after for before, after in layer._pads):
        raise ValueError(f"padding must be the same on both sides for torch, got {layer.padding}")
    return tuple(before for before, _ in layer._pads)
