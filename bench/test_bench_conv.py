"""Convolutions of the shape list, one image; run with ``pytest bench``, choose with ``-k``."""

import numpy as np
import pytest

from convkern.functional import PackedConv2d, conv2d
from convkern.shapes import CONV_SHAPES

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=3)


@pytest.fixture(params=CONV_SHAPES, ids=lambda shape: shape.label)
def shape(request, benchmark):
    benchmark.group = request.param.label
    benchmark.extra_info["flops"] = request.param.flops
    return request.param


@pytest.fixture
def weight(shape):
    return np.random.default_rng(0).standard_normal(shape.weight_shape, np.float32)


@pytest.fixture
def image(shape):
    return np.random.default_rng(1).standard_normal((1, *shape.input_shape), np.float32)


def channels_last(image):
    return np.ascontiguousarray(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def test_nchw(benchmark, shape, image, weight):
    benchmark(conv2d, image, weight, **shape.arguments)


def test_channels_last(benchmark, shape, image, weight):
    benchmark(conv2d, channels_last(image), weight, **shape.arguments)


def test_channels_last_prepacked(benchmark, shape, image, weight):
    benchmark(PackedConv2d(weight, **shape.arguments), channels_last(image))
