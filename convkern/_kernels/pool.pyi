import numpy as np

def max_pool2d(
    x: np.ndarray,
    out: np.ndarray,
    indices: np.ndarray | None,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    channels_last: bool,
    threads: int,
    coefficients: np.ndarray | None = None,
    relu: bool = False,
) -> None: ...
def max_pool2d_backward(
    grad: np.ndarray,
    indices: np.ndarray,
    out: np.ndarray,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    threads: int,
    rectified: np.ndarray | None = None,
    x: np.ndarray | None = None,
    coefficients: np.ndarray | None = None,
    after_relu: bool = False,
) -> None: ...
def max_pool2d_sums(
    grad: np.ndarray,
    indices: np.ndarray,
    x: np.ndarray,
    center: np.ndarray,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    threads: int,
    rectified: np.ndarray | None = None,
) -> np.ndarray: ...
def scatter(
    src: np.ndarray, indices: np.ndarray, out: np.ndarray, add: bool, threads: int
) -> bool: ...
def gather(src: np.ndarray, indices: np.ndarray, out: np.ndarray, threads: int) -> bool: ...
def box_sums(
    x: np.ndarray,
    out: np.ndarray,
    rows: tuple[np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray],
    divisors: tuple[np.ndarray, np.ndarray] | None,
    channels_last: bool,
    threads: int,
) -> None: ...
