"""Photos to arrays: every mode and orientation, the geometry, and files that are no photos."""

import os
import struct
import sys
import zlib

import numpy as np
import pytest

from convkern.errors import FormatError
from convkern.images import IMAGENET_MEAN, IMAGENET_STD, load_image, sample_photo

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

pytestmark = pytest.mark.once

PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1), "dtype": np.float64}


def photo(width=40, height=30, seed=0):
    """Return a smooth coloured picture without symmetries."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def deep(mode):
    """Return a grey picture of more than 8 bits whose samples are two thirds of white."""
    white, kind = {"I;16": (65535, "<u2"), "I": (65535, "<i4"), "F": (1, "<f4")}[mode]
    return Image.fromarray(np.full((20, 20), white * 2 / 3).astype(kind))


def palette(transparent):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    if transparent:
        image.info["transparency"] = 1
    return image


MODES = {
    "1": (lambda: Image.new("1", (20, 20), 1), "PNG", (1, 1, 1)),
    "L": (lambda: Image.new("L", (20, 20), 51), "PNG", (0.2, 0.2, 0.2)),
    "LA": (lambda: Image.new("LA", (20, 20), (51, 51)), "PNG", (0.84, 0.84, 0.84)),
    "P": (lambda: palette(False), "PNG", (0, 0, 1)),
    "P transparent": (lambda: palette(True), "PNG", (1, 1, 1)),
    "P transparent GIF": (lambda: palette(True), "GIF", (1, 1, 1)),
    "RGB": (lambda: Image.new("RGB", (20, 20), (51, 102, 255)), "BMP", (0.2, 0.4, 1)),
    "RGBA": (lambda: Image.new("RGBA", (20, 20), (255, 0, 0, 51)), "PNG", (1, 0.8, 0.8)),
    "RGBA WebP": (lambda: Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "WEBP", (1, 1, 1)),
    "RGB transparent": (lambda: Image.new("RGB", (20, 20), (9, 9, 9)), "PNG", (1, 1, 1)),
    "CMYK": (lambda: Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "TIFF", (1, 0, 0)),
    "CMYK JPEG": (lambda: Image.new("CMYK", (20, 20), (0, 0, 0, 204)), "JPEG", (0.2, 0.2, 0.2)),
    "YCbCr": (lambda: Image.new("YCbCr", (20, 20), (51, 128, 128)), "TIFF", (0.2, 0.2, 0.2)),
    "I;16": (lambda: deep("I;16"), "PNG", (2 / 3, 2 / 3, 2 / 3)),
    "I;16 TIFF": (lambda: deep("I;16"), "TIFF", (2 / 3, 2 / 3, 2 / 3)),
    "I": (lambda: deep("I"), "TIFF", (2 / 3, 2 / 3, 2 / 3)),
    "I PGM": (lambda: deep("I"), "PPM", (2 / 3, 2 / 3, 2 / 3)),
    "F": (lambda: deep("F"), "TIFF", (2 / 3, 2 / 3, 2 / 3)),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(tmp_path, name):
    make, form, expected = MODES[name]
    options = {"transparency": (9, 9, 9)} if name == "RGB transparent" else {}
    make().save(tmp_path / "image", form, **options)
    array = load_image(tmp_path / "image", 8, **PLAIN)
    assert array.shape == (3, 8, 8)
    # Half a step of 8 bits; JPEG and colour spaces lose another.
    np.testing.assert_allclose(array, np.array(expected)[:, None, None] + 0 * array, atol=1.6 / 255)


def test_deep_samples_are_clipped(tmp_path):
    samples = np.array([[-3.0, 0.0, 0.5, 1.0, 7.0, np.inf]] * 6, np.float32)
    Image.fromarray(samples).save(tmp_path / "image", "TIFF")
    row = load_image(tmp_path / "image", 6, resize=6, **PLAIN)[0, 0]
    np.testing.assert_allclose(row, [0, 0, 128 / 255, 1, 1, 1], rtol=1e-12)
    samples[0, 0] = np.nan
    Image.fromarray(samples).save(tmp_path / "image", "TIFF")
    with pytest.raises(FormatError, match="NaN"):
        load_image(tmp_path / "image", 6)


# What must be done to a stored picture to turn it upright, by the value of the EXIF tag.
UPRIGHT = {
    1: None,
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation(tmp_path, orientation):
    stored = photo()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "stored", "PNG", exif=exif)
    method = UPRIGHT[orientation]
    upright = stored.transpose(Image.Transpose[method]) if method else stored
    upright.save(tmp_path / "upright", "PNG")
    np.testing.assert_array_equal(
        load_image(tmp_path / "stored", 16), load_image(tmp_path / "upright", 16)
    )


def test_the_first_of_several_frames(tmp_path):
    red, blue = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if form == "WEBP" else {}
        red.save(tmp_path / "image", form, save_all=True, append_images=[blue], **options)
        array = load_image(tmp_path / "image", 8, **PLAIN)
        np.testing.assert_array_equal(array.mean(axis=(1, 2)), [1, 0, 0])


@pytest.mark.parametrize("extent", [(40, 30), (30, 40), (31, 31), (100, 9), (700, 900)])
@pytest.mark.parametrize(("size", "resize"), [(16, None), (16, 16), (24, 33), ((8, 20), 25)])
def test_resize_then_crop(tmp_path, extent, size, resize):
    image = photo(*extent)
    image.save(tmp_path / "image", "PNG")
    height, width = size if isinstance(size, tuple) else (size, size)
    short = resize or round(size * 256 / 224)
    full = tuple(short * side // min(extent) for side in extent)
    left, top = round((full[0] - width) / 2), round((full[1] - height) / 2)
    whole = image.resize(full, Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((left, top, left + width, top + height)), float) / 255
    found = load_image(tmp_path / "image", size, resize=resize, **PLAIN)
    assert found.shape == (3, height, width)
    assert found.flags.c_contiguous
    # The rounding of the filter's weights may differ by one step in 255.
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1.01 / 255)
    assert np.abs(found - expected.transpose(2, 0, 1)).mean() < 0.2 / 255


def test_shrinking_does_not_alias(tmp_path):
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "image", "PNG")
    array = load_image(tmp_path / "image", 16, **PLAIN)
    np.testing.assert_allclose(array, np.full_like(array, 0.5), atol=0.01)


def test_long_and_thin(tmp_path):
    Image.new("L", (60_000, 1), 51).save(tmp_path / "image", "PNG")
    array = load_image(tmp_path / "image", 224, **PLAIN)
    np.testing.assert_array_equal(array, np.full((3, 224, 224), 0.2))


def test_normalisation(tmp_path):
    Image.new("RGB", (20, 20), (0, 51, 255)).save(tmp_path / "image", "PNG")
    array = load_image(tmp_path / "image", 8)
    assert array.dtype == np.float32
    expected = (np.array([0, 0.2, 1]) - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(array[:, 3, 3], expected, rtol=1e-6)
    double = load_image(tmp_path / "image", 8, dtype=float, mean=[1, 2, 3], std=[1, 2, 4])
    assert double.dtype == np.float64
    np.testing.assert_allclose(double[:, 3, 3], [-1, -0.9, -0.5], rtol=1e-14)


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (TypeError, {"size": 2.0}),
        (TypeError, {"size": "8"}),
        (ValueError, {"size": 0}),
        (ValueError, {"size": (8, 8, 8)}),
        (ValueError, {"resize": 7}),
        (TypeError, {"resize": 9.5}),
        (TypeError, {"dtype": np.float16}),
        (TypeError, {"dtype": np.uint8}),
        (ValueError, {"mean": (0, 0)}),
        (ValueError, {"mean": (0, 0, np.nan)}),
        (ValueError, {"std": (1, 1, 0)}),
        (ValueError, {"std": (1, 1, -1)}),
    ],
)
def test_bad_arguments(tmp_path, error, arguments):
    photo().save(tmp_path / "image", "PNG")
    with pytest.raises(error, match=next(iter(arguments))):
        load_image(tmp_path / "image", **{"size": 8} | arguments)


# --- files that are no photos


def refused(path, match=None):
    with pytest.raises(FormatError, match=match) as caught:
        load_image(path, 8)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("limit", [10_000, 30_000])  # Pillow warns, then raises at twice the limit
def test_decompression_bomb(tmp_path, monkeypatch, limit):
    photo(200, 200).save(tmp_path / "image", "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    refused(tmp_path / "image", "bomb")


def test_png_that_claims_to_be_huge(tmp_path):
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    content += chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    (tmp_path / "image").write_bytes(content)
    refused(tmp_path / "image", "bomb")


def test_other_files(tmp_path):
    for content in (
        b"",
        b"hello",
        bytes(1000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ):
        (tmp_path / "file").write_bytes(content)
        refused(tmp_path / "file", "is not an image")
    photo().save(tmp_path / "icon", "ICO")
    refused(tmp_path / "icon", "BMP, GIF, JPEG")
    refused(tmp_path, "not a regular file")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "missing", 8)
    if os.name == "posix":
        os.mkfifo(tmp_path / "fifo")
        refused(tmp_path / "fifo", "not a regular file")
        refused("/dev/zero", "not a regular file")


# --- the sample photo, and what it needs


def test_sample_photo():
    cbook = pytest.importorskip("matplotlib.cbook")
    array = load_image(sample_photo(), 64, **PLAIN)
    assert 0.2 < array.mean() < 0.8
    assert array.std() > 0.1
    assert os.path.samefile(
        sample_photo(), cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    )


def test_without_the_sample_photo(tmp_path, monkeypatch):
    cbook = pytest.importorskip("matplotlib.cbook")
    monkeypatch.setattr(cbook, "get_sample_data", lambda *_, **__: tmp_path / "missing.jpg")
    with pytest.raises(FileNotFoundError, match=r"sample photo.*missing\.jpg"):
        sample_photo()


@pytest.mark.parametrize("module", ["PIL.Image", "matplotlib.cbook"])
def test_without_a_library(tmp_path, monkeypatch, module):
    photo().save(tmp_path / "image", "PNG")
    monkeypatch.setitem(sys.modules, module, None)
    call = sample_photo if module.startswith("m") else lambda: load_image(tmp_path / "image", 8)
    with pytest.raises(ImportError, match=r'pip install "convkern\[app\]"'):
        call()
