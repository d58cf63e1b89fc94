import numpy as np

def im2col(
    x: np.ndarray,
    out: np.ndarray,
    oh: int,
    ow: int,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    threads: int,
) -> None: ...
def col2im(
    columns_: np.ndarray,
    out: np.ndarray,
    oh: int,
    ow: int,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    threads: int,
) -> None: ...
