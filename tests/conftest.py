"""Fixtures shared by the tests."""

import importlib.util
import os

import pytest

# What pytest would import in search of examples, and what that needs.
NEEDS = {"readers.py": ["PIL", "safetensors"], "torch_models.py": ["torch"]}
collect_ignore = [
    file for file, modules in NEEDS.items() if not all(map(importlib.util.find_spec, modules))
]


@pytest.fixture(scope="session")
def torch():
    """PyTorch, the independent implementation that results are compared with."""
    module = pytest.importorskip("torch", reason="PyTorch is not installed")
    module.set_num_threads(min(2, os.cpu_count() or 1))
    return module


@pytest.fixture
def no_pictures(monkeypatch):
    """Train without pictures, to save the time of drawing."""
    monkeypatch.setattr("convkern.training.loop._Run._draw", lambda *_: None)
