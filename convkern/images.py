"""Photos to arrays, prepared as networks for ImageNet expect them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convkern.errors import FormatError, import_extra, open_regular
from convkern.geometry import IntPair, integer, pair

Array = npt.NDArray[Any]

#: Mean and standard deviation of ImageNet's red, green and blue, on a scale of 0 to 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Formats that Pillow decodes by itself; others would start programs or fetch files.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: White in the modes with more than 8 bits, by the mode's first letter.
_WHITE = {"I": 65535.0, "F": 1.0}


def load_image(
    path: str | os.PathLike[str],
    size: IntPair,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    resize: int | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """Read a photo, resize it, crop its centre and normalise its colours.

    The photo is turned upright (EXIF), brought to RGB and resized with an
    antialiased bilinear filter so that its shorter side is `resize`; the
    `size` in the centre is kept, scaled to 0..1, and becomes
    ``(value - mean) / std``.

    Parameters
    ----------
    path : str or path-like
        A BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file.  Transparent parts become
        white, the first of several frames is taken.  Samples of 16 bits, and
        integers of 32, count as 0..65535 and floats as 0..1; values beyond are clipped.
    size : int or (int, int)
        Height and width of the result.
    mean, std : sequence of three floats
        Of red, green and blue; the defaults are ImageNet's.
    resize : int, optional
        The shorter side before the crop, by default 256/224 of the larger `size`.
    dtype : {float32, float64}
        Of the result.

    Returns
    -------
    (3, H, W) array

    Raises
    ------
    FormatError
        If the file is no such image, is damaged or truncated, or is so large
        that Pillow takes it for a decompression bomb: 89 million pixels, of
        which each may take 16 bytes of memory for a while.
    TypeError, ValueError
        If an argument is not as above.
    OSError
        If the file cannot be read.
    ImportError
        If Pillow is not installed.

    Examples
    --------
    >>> from convkern.images import load_image, sample_photo
    >>> load_image(sample_photo(), 227).shape
    (3, 227, 227)
    """
    scalar = np.dtype(dtype)
    if scalar not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {scalar}")
    center, spread = _triple(mean, "mean"), _triple(std, "std")
    if not (spread > 0).all():
        raise ValueError(f"std must be positive, got {std!r}")

    cropped = load_pixels(path, size, resize=resize).astype(scalar)
    normalised = (cropped / 255 - center) / spread
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), scalar)


def load_pixels(
    path: str | os.PathLike[str], size: IntPair, *, resize: int | None = None
) -> npt.NDArray[np.uint8]:
    """Read a photo as `load_image` does, without normalising it.

    Parameters
    ----------
    path, size, resize
        As for `load_image`.

    Returns
    -------
    (H, W, 3) array of uint8
        Red, green and blue, pixel by pixel.

    Raises
    ------
    FormatError, TypeError, ValueError, OSError, ImportError
        As `load_image`.

    Examples
    --------
    >>> from convkern.images import load_pixels, sample_photo
    >>> load_pixels(sample_photo(), (24, 32)).shape
    (24, 32, 3)
    """
    height, width = pair(size, "size")
    if resize is None:
        resize = round(max(height, width) * 256 / 224)
    short = integer(resize, "resize", max(height, width))
    picture = _to_rgb(_decode(path), path)
    # Only the part that the crop keeps is resized: a long and thin file would become huge.
    left, right = _kept(picture.width, short * picture.width // min(picture.size), width)
    top, bottom = _kept(picture.height, short * picture.height // min(picture.size), height)
    bilinear = import_extra("PIL.Image").Resampling.BILINEAR
    return np.asarray(picture.resize((width, height), bilinear, box=(left, top, right, bottom)))


def sample_photo() -> str:
    """Return the path of a photo to try things on: Grace Hopper, which comes with matplotlib.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    FileNotFoundError
        If matplotlib was installed without its sample data.

    Examples
    --------
    >>> from convkern.images import sample_photo
    >>> sample_photo().endswith("grace_hopper.jpg")
    True
    """
    cbook = import_extra("matplotlib.cbook")
    path = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    if not os.path.isfile(path):
        raise FileNotFoundError(f"matplotlib was installed without its sample photo {path}")
    return path


def _triple(values: Sequence[float], name: str) -> npt.NDArray[np.float64]:
    """Return three finite numbers as an array."""
    numbers = np.asarray(values, np.float64)
    if numbers.shape != (3,) or not np.isfinite(numbers).all():
        raise ValueError(f"{name} must be three finite numbers, got {values!r}")
    return numbers


def _kept(length: int, resized: int, crop: int) -> tuple[float, float]:
    """Return which part of `length` pixels is the central `crop` after resizing to `resized`."""
    start, unit = round((resized - crop) / 2), length / resized
    return start * unit, min((start + crop) * unit, length)


def _decode(path: str | os.PathLike[str]) -> Any:
    """Return the first frame as an upright Pillow image, all its pixels decoded."""
    image_module, image_ops = import_extra("PIL.Image"), import_extra("PIL.ImageOps")
    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about oddities of files that are readable
        warnings.simplefilter("error", image_module.DecompressionBombWarning)
        try:
            image = image_module.open(file, formats=_FORMATS)
            image.load()
            return image_ops.exif_transpose(image)
        except image_module.UnidentifiedImageError as error:
            formats = ", ".join(_FORMATS)
            raise FormatError(f"{os.fspath(path)} is not an image ({formats})") from error
        except MemoryError:
            raise
        # The decoders raise whatever their parsing of damaged bytes runs into.
        except Exception as error:
            raise FormatError(f"{os.fspath(path)} is a damaged image: {error}") from error


def _to_rgb(image: Any, path: str | os.PathLike[str]) -> Any:
    """Bring any mode to RGB: deep samples to 8 bits, transparency onto white."""
    image_module = import_extra("PIL.Image")
    white = _WHITE.get(image.mode[0])
    if white is not None:
        values = np.asarray(image, np.float32) / white
        if np.isnan(values).any():
            raise FormatError(f"{os.fspath(path)} is a damaged image: it has samples that are NaN")
        image = image_module.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        background = image_module.new("RGBA", image.size, "white")
        image = image_module.alpha_composite(background, image)
    return image.convert("RGB")
