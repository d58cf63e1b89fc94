import numpy as np

def gather_blocks(
    x: np.ndarray,
    blocks: np.ndarray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    channels_last: bool,
    threads: int,
) -> None: ...
def take_steps(
    pixels: np.ndarray, steps: np.ndarray, step: tuple[int, int], threads: int
) -> None: ...
def spread_steps(
    steps: np.ndarray, pixels: np.ndarray, step: tuple[int, int], threads: int
) -> None: ...
