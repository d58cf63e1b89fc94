"""How much memory a training step takes at most, and what becomes of it afterwards."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import convkern
from convkern import nn
from convkern._kernels import idle_bytes

MEASURED = """
import numpy as np
import convkern
from convkern import nn
from convkern.bench.timing import peak_memory

def conv(channels, filters):
    return nn.Conv2d(channels, filters, 3, padding=1, bias=False)

def block(channels):
    return nn.Residual(conv(channels, channels), nn.BatchNorm2d(channels), nn.ReLU(),
                       conv(channels, channels), nn.BatchNorm2d(channels))

convkern.set_num_threads(2)
net = nn.Sequential(
    conv(3, 32), nn.BatchNorm2d(32), nn.ReLU(), block(32), nn.ReLU(), nn.MaxPool2d(2),
    conv(32, 48), nn.ReLU(), block(48), nn.ReLU(),
    nn.Flatten(), nn.Linear(48 * 32 * 32, 200),
)
images, wide, narrow = np.ones((16, 3, 64, 64), np.float32), 16 * 32 * 64**2, 16 * 48 * 32**2
target = np.arange(16)
loss, optimizer = nn.CrossEntropyLoss(), nn.SGD(net.parameters(), lr=1e-3, momentum=0.9)

def step():
    optimizer.zero_grad()
    loss(net(images), target)
    net.backward(loss.backward(), input_gradient=False)
    optimizer.step()

learned = sum(parameter.data.nbytes for parameter in net.parameters())
# Gradients and momentum; what the layers keep: the outputs of convolutions and of ReLUs, the
# indices and the output of the pooling; gradients on the way back, and scratch.
kept = 4 * (6 * wide + 6 * narrow) + 12 * (wide // 4)
print(peak_memory(step), (2 * learned + kept + 4 * 3 * wide) / 1e6 + 24)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_of_a_training_step():
    """A step takes little more than what is alive at once: kept memory serves every size."""
    command = [sys.executable, "-c", MEASURED]
    peak, bound = map(float, subprocess.check_output(command, text=True).split())
    assert bound / 2 < peak < bound


def test_kept_memory_is_cut_and_joined():
    """What one large array leaves serves four small ones, and what these leave a large one."""
    x = np.arange(2**24, dtype=np.float32)
    convkern.empty_cache()
    whole = convkern.functional.relu(x)
    del whole
    before = idle_bytes()
    assert before >= x.nbytes
    quarters = [convkern.functional.relu(x[i::4]) for i in range(4)]
    assert idle_bytes() < before - x.nbytes
    for i in range(4):
        np.testing.assert_array_equal(quarters[i], x[i::4])
    for i in (1, 3, 0, 2):
        quarters[i] = None
    assert idle_bytes() == before
    whole = convkern.functional.relu(x)
    assert idle_bytes() < before - x.nbytes
    del whole
    assert idle_bytes() == before


def address(x):
    return x.__array_interface__["data"][0]


def test_small_blocks_keep_their_size():
    """An array gets the memory of the last one of its size, and others get none of that."""
    convkern.empty_cache()
    sizes = [300_000, 200_000, 100_000, 50_000]
    arrays = [convkern.functional.relu(np.ones(size, np.float32)) for size in sizes]
    places = {array.size: address(array) for array in arrays}
    whole = idle_bytes()
    arrays.clear()
    for size in 50_000, 300_000, 100_000, 200_000:
        array = convkern.functional.relu(np.ones(size, np.float32))
        assert address(array) == places[size]
        arrays.append(array)
    assert idle_bytes() == whole


@pytest.mark.parametrize(("count", "kib"), [(24, 1500), (9, 4000), (300, 120)])
def test_small_blocks_are_joined_where_much_is_mapped(count, kib):
    """They serve a large array before more is mapped, and what it leaves serves them."""
    x = np.ones(6 << 20, np.float32)
    convkern.empty_cache()
    parts = [convkern.functional.relu(x[: kib << 8]) for _ in range(count)]
    del parts
    before = idle_bytes()
    for _ in range(2):
        whole = convkern.functional.relu(x)
        assert idle_bytes() < before - x.nbytes
        del whole
        assert idle_bytes() == before
        parts = [convkern.functional.relu(x[: kib << 8]) for _ in range(count)]
        assert idle_bytes() < before - count * (kib << 10)
        del parts
        assert idle_bytes() == before


def test_scratch_memory_is_kept_between_calls():
    """Once calls have had what they need, more of them need nothing anew, and all of it goes."""
    x = np.ones((4, 16, 12, 12), np.float32)
    weights = [np.ones((16 * n, 16, 3, 3), np.float32) for n in (16, 1)]
    convkern.empty_cache()
    for weight in weights:
        convkern.conv2d(x, weight)
    most = idle_bytes()
    for weight in weights * 2:
        convkern.conv2d(x, weight)
        assert idle_bytes() == most
    convkern.empty_cache()
    assert idle_bytes() == 0


def test_idle_memory_is_bounded():
    """What is given back beyond the limit goes to the system, also from one large block."""
    convkern.empty_cache()
    large = convkern.functional.relu(np.ones(210 << 20, np.float32))
    del large
    assert 700 << 20 < idle_bytes() <= 768 << 20
    convkern.empty_cache()


def test_gradients_are_only_overwritten_where_nobody_holds_them():
    """A ReLU takes over the gradient of a pooling, not one that came from outside."""
    rng = np.random.default_rng(0)
    layers = nn.Conv2d(3, 8, 3, rng=rng), nn.ReLU(), nn.MaxPool2d(2)
    for end in (2, 3):
        net = nn.Sequential(*layers[:end])
        x = rng.standard_normal((2, 3, 12, 12)).astype(np.float32)
        y = net(x)
        grad = rng.standard_normal(y.shape).astype(np.float32)
        before = grad.copy()
        whole = net.backward(grad)
        np.testing.assert_array_equal(grad, before)
        # The same, layer by layer, where nothing can be overwritten.
        outputs = [x]
        for layer in net:
            outputs.append(layer(outputs[-1]))
        for layer in reversed(net.layers):
            grad = layer.backward(grad)
        np.testing.assert_array_equal(whole, grad)
