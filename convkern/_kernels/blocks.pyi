import numpy as np

def gather_blocks(
    x: np.ndarray,
    blocks: np.ndarray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    channels_last: bool,
    threads: int,
) -> None: ...
