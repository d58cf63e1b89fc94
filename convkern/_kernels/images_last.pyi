import numpy as np

Axis = tuple[int, int, int, int]

def lanes_conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    rows: Axis,
    columns: Axis,
    activation: int,
    slope: float,
    threads: int,
) -> None: ...
def lanes_input_gradient(
    grad: np.ndarray,
    weight: np.ndarray,
    grad_input: np.ndarray,
    rows: Axis,
    columns: Axis,
    threads: int,
) -> None: ...
def lanes_weight_gradient(
    x: np.ndarray,
    grad: np.ndarray,
    grad_weight: np.ndarray,
    rows: Axis,
    columns: Axis,
    threads: int,
) -> None: ...
def is_images_last(x: np.ndarray) -> bool: ...
def to_images_last(x: np.ndarray, out: np.ndarray, threads: int) -> None: ...
def from_images_last(x: np.ndarray, out: np.ndarray, threads: int) -> None: ...
