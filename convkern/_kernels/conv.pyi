import numpy as np

from convkern._kernels.channels import ImageMoments
from convkern._kernels.packing import PackedConv

def conv2d(
    x: np.ndarray,
    packed: PackedConv,
    out: np.ndarray,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    activation: int,
    slope: float,
    channels_last: bool,
    threads: int,
    moments: ImageMoments | None = None,
    turned: bool = False,
) -> None: ...
def conv2d_planes(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    out: np.ndarray,
    rows: tuple[int, int, int, int],
    columns: tuple[int, int, int, int],
    groups: int,
    activation: int,
    slope: float,
    threads: int,
) -> None: ...
