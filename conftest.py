"""What pytest collects: not the modules that need torch, where it is not installed."""

from importlib.util import find_spec

collect_ignore = (
    [] if find_spec("torch") else ["convkern/interop/torch_nn.py", "tests/torch_models.py"]
)
