import numpy as np

def gather_blocks(
    x: np.ndarray,
    blocks: np.ndarray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    threads: int,
) -> None: ...
