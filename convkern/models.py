"""Networks of the literature: functions that return a `Sequential` with fresh weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from convkern.nn import (
    AdaptiveAvgPool2d,
    Conv2d,
    Dropout,
    Flatten,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    ReLU,
    Sequential,
    Sigmoid,
    Softmax,
)


class _AlexNet(NamedTuple):
    """What distinguishes one form of AlexNet from the others."""

    input_size: int
    channels: tuple[int, int, int, int, int]
    first_padding: int = 0
    groups: int = 1
    local_response_norm: bool = False
    average_pool: bool = False


_ALEXNETS = {
    "article": _AlexNet(227, (96, 256, 384, 384, 256)),
    "torchvision": _AlexNet(224, (64, 192, 384, 256, 256), first_padding=2, average_pool=True),
    "2012": _AlexNet(227, (96, 256, 384, 384, 256), groups=2, local_response_norm=True),
}

#: Height and width of the images that each variant of `alexnet` takes.
INPUT_SIZE = {variant: form.input_size for variant, form in _ALEXNETS.items()}

#: What may follow the last linear layer of a net.
_OUTPUTS: dict[str, type[Layer] | None] = {"logits": None, "sigmoid": Sigmoid, "softmax": Softmax}


def alexnet(
    num_classes: int = 1000,
    variant: str = "article",
    output: str = "logits",
    *,
    rng: np.random.Generator | None = None,
) -> Sequential:
    """Return AlexNet: five convolutions and three linear layers.

    Source: Krizhevsky, Sutskever and Hinton, *ImageNet classification with deep
    convolutional neural networks*, 2012.

    Parameters
    ----------
    num_classes : int
        Length of the output.
    variant : {"article", "torchvision", "2012"}
        ``"article"`` is the net in one tower, for images of 227x227 and with
        62,378,344 parameters.  ``"torchvision"`` is the narrower net of
        torchvision, for 224x224, with 61,100,840 parameters and their names
        there.  ``"2012"`` is the original net for 227x227: convolutions 2, 4
        and 5 in two groups, and local response normalisation after the first
        two, with the paper's numbers in the convention of
        `convkern.local_response_norm`; 60,965,224 parameters.
    output : {"logits", "sigmoid", "softmax"}
        What becomes of the last layer's numbers.
    rng : numpy.random.Generator, optional
        Where the initial weights and the choices of dropout come from.

    Returns
    -------
    Sequential
        A net from ``(N, 3, H, W)``, with ``H = W = INPUT_SIZE[variant]``, to
        ``(N, num_classes)``; its parts are ``features``, ``avgpool``
        (torchvision only), ``flatten``, ``classifier`` and, after logits, ``output``.

    Raises
    ------
    ValueError
        If `variant` or `output` is none of those above.

    Examples
    --------
    >>> from convkern.models import alexnet
    >>> net = alexnet(variant="2012")
    >>> net.num_parameters()
    60965224
    >>> net.output_shape((16, 3, 227, 227))
    (16, 1000)
    """
    for name, value, accepted in (("variant", variant, _ALEXNETS), ("output", output, _OUTPUTS)):
        if value not in accepted:
            raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {value!r}")
    rng = np.random.default_rng() if rng is None else rng
    form = _ALEXNETS[variant]
    c1, c2, c3, c4, c5 = form.channels
    groups = form.groups

    def norm() -> list[Layer]:
        return (
            [LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)] if form.local_response_norm else []
        )

    features = Sequential(
        Conv2d(3, c1, 11, stride=4, padding=form.first_padding, rng=rng),
        ReLU(),
        *norm(),
        MaxPool2d(3, stride=2),
        Conv2d(c1, c2, 5, padding=2, groups=groups, rng=rng),
        ReLU(),
        *norm(),
        MaxPool2d(3, stride=2),
        Conv2d(c2, c3, 3, padding=1, rng=rng),
        ReLU(),
        Conv2d(c3, c4, 3, padding=1, groups=groups, rng=rng),
        ReLU(),
        Conv2d(c4, c5, 3, padding=1, groups=groups, rng=rng),
        ReLU(),
        MaxPool2d(3, stride=2),
    )
    classifier = Sequential(
        Dropout(rng=rng),
        Linear(c5 * 6 * 6, 4096, rng=rng),
        ReLU(),
        Dropout(rng=rng),
        Linear(4096, 4096, rng=rng),
        ReLU(),
        Linear(4096, num_classes, rng=rng),
    )
    parts: list[tuple[str, Layer]] = [("features", features)]
    if form.average_pool:
        parts.append(("avgpool", AdaptiveAvgPool2d(6)))
    parts += [("flatten", Flatten()), ("classifier", classifier)]
    if last := _OUTPUTS[output]:
        parts.append(("output", last()))
    return Sequential(*parts)
