"""What pytest collects, and which tests compare with torch."""

from importlib.util import find_spec

import pytest

# These cannot even be imported where torch is not installed.
NEED_TORCH = ["convkern/interop/torch_nn.py", "tests/torch_models.py"]
collect_ignore = [] if find_spec("torch") else NEED_TORCH


def pytest_collection_modifyitems(items):
    """Mark the tests that take torch, or are examples of a module that needs it."""
    for item in items:
        if "torch" in getattr(item, "fixturenames", ()) or item.nodeid.startswith(NEED_TORCH[0]):
            item.add_marker(pytest.mark.torch)
