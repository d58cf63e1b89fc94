"""Types of the compiled module; its functions trust their arguments."""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

isa: str
openmp: int

class PackedConv:
    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None, groups: int, threads: int
    ) -> None: ...

def isa_names(supported_only: bool = True) -> list[str]: ...
def empty(
    shape: tuple[int, ...], dtype: np.dtype[Any], channels_last: bool = False
) -> np.ndarray: ...
def empty_cache() -> None: ...
def idle_bytes() -> int: ...
def to_channels_last(x: np.ndarray, out: np.ndarray, threads: int) -> None: ...
def to_contiguous(x: np.ndarray, out: np.ndarray, threads: int) -> None: ...
def conv2d(
    x: np.ndarray,
    packed: PackedConv,
    out: np.ndarray,
    rows: tuple[int, int, int],
    columns: tuple[int, int, int],
    activation: int,
    slope: float,
    channels_last: bool,
    threads: int,
) -> None: ...
def max_pool2d(
    x: np.ndarray,
    out: np.ndarray,
    indices: np.ndarray | None,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    channels_last: bool,
    threads: int,
) -> None: ...
def linear(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray, threads: int
) -> None: ...
def activate(x: np.ndarray, y: np.ndarray, activation: int, slope: float, threads: int) -> None: ...
def local_response_norm(
    x: np.ndarray,
    y: np.ndarray,
    channels: int,
    window: int,
    alpha: float,
    beta: float,
    k: float,
    threads: int,
) -> None: ...
def spin_fma(dtype: DTypeLike, iterations: int, threads: int) -> float: ...
def fma_peak(threads: int, dtype: DTypeLike = ...) -> float: ...
