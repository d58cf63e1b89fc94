"""Max poolings and linear layers of the shape list; run with ``pytest bench``."""

import numpy as np
import pytest

from convkern.functional import linear, max_pool2d
from convkern.shapes import LINEAR_SHAPES, POOL_SHAPES

pytestmark = pytest.mark.benchmark(max_time=0.2, min_rounds=3)


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("shape", POOL_SHAPES, ids=lambda shape: shape.label)
def test_max_pool2d(benchmark, shape, axes):
    buffer_shape = np.take((1, *shape.input_shape), np.argsort(axes))
    image = np.random.default_rng(0).standard_normal(buffer_shape, np.float32).transpose(axes)
    benchmark(max_pool2d, image, **shape.arguments)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("shape", LINEAR_SHAPES, ids=lambda shape: shape.label)
def test_linear(benchmark, shape, batch):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape.weight_shape, np.float32)
    benchmark(linear, rng.standard_normal((batch, *shape.input_shape), np.float32), weight)
