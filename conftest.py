"""What pytest collects, which tests compare with torch, and what they leave to chance."""

import os
import zlib
from importlib.util import find_spec

import numpy as np
import pytest

# These cannot even be imported where torch is not installed.
NEED_TORCH = ["convkern/interop/torch_nn.py", "tests/torch_models.py"]
collect_ignore = [] if find_spec("torch") else NEED_TORCH

# Another seed gives other weights, wherever a test leaves them to chance.
SEED = int(os.environ.get("CONVKERN_TEST_SEED", "0"))


def pytest_collection_modifyitems(items):
    """Mark the tests that take torch, or are examples of a module that needs it."""
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()) or item.nodeid.startswith(NEED_TORCH[0]):
            item.add_marker(pytest.mark.torch)


@pytest.fixture(autouse=True)
def seeded(request, monkeypatch):
    """Draw what has no seed of its own by the test's name: so it passes always, or never."""
    seeds = np.random.SeedSequence([SEED, zlib.crc32(request.node.nodeid.encode())])
    default_rng = np.random.default_rng

    def generator(seed=None):
        return default_rng(seeds.spawn(1)[0] if seed is None else seed)

    monkeypatch.setattr(np.random, "default_rng", generator)
