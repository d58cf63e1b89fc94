"""Fixtures shared by the tests."""

import os

import pytest


@pytest.fixture(scope="session")
def torch():
    """PyTorch, the independent implementation that results are compared with."""
    module = pytest.importorskip("torch", reason="PyTorch is not installed")
    module.set_num_threads(min(2, os.cpu_count() or 1))
    return module
