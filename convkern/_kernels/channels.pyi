from typing import Any

import numpy as np

def moments(
    x: np.ndarray, cut: tuple[int, int, int], threads: int, unit: int = 0
) -> tuple[np.ndarray, np.ndarray]: ...

class ImageMoments:
    def __init__(self, x: np.ndarray) -> None: ...
    def begin(self, image: int) -> None: ...
    def result(self, threads: int) -> tuple[np.ndarray, np.ndarray] | None: ...

def gradient_sums(
    grad: np.ndarray,
    x: np.ndarray,
    center: np.ndarray,
    cut: tuple[int, int, int],
    threads: int,
    rectified: np.ndarray | None = None,
) -> np.ndarray: ...
def normalising_rows(
    mean: np.ndarray,
    var: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    gain: float,
    dtype: np.dtype[Any],
) -> np.ndarray: ...
def moved_statistics(
    running: np.ndarray, batch: np.ndarray, momentum: float, factor: float
) -> np.ndarray: ...
def normalising_gradient(
    mean: np.ndarray,
    var: np.ndarray,
    sums: np.ndarray,
    weight: np.ndarray | None,
    eps: float,
    count: float,
    dtype: np.dtype[Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
def totals(x: np.ndarray, cut: tuple[int, int, int], threads: int) -> np.ndarray: ...
def rounded_totals(x: np.ndarray, cut: tuple[int, int, int], threads: int) -> np.ndarray: ...
def negative_products(
    x: np.ndarray, grad: np.ndarray, cut: tuple[int, int, int], threads: int
) -> np.ndarray: ...
def affine(
    x: np.ndarray,
    grad: np.ndarray | None,
    y: np.ndarray,
    coefficients: np.ndarray,
    cut: tuple[int, int, int],
    threads: int,
    relu: bool = False,
    rectified: np.ndarray | None = None,
    after_relu: bool = False,
) -> None: ...
def local_response_norm(
    x: np.ndarray,
    y: np.ndarray,
    channels: int,
    window: int,
    alpha: float,
    beta: float,
    k: float,
    threads: int,
    grad: np.ndarray | None = None,
) -> None: ...
