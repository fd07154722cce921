"""Images become an encoder's input, geometry and numbers as training code has them; the rest is one clear error."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_embed.errors import RequestError
from edge_embed.images import PIXELS_CEILING, Image, ImageReader, bilinear_plain, listed
from edge_embed_bundle.encoders import ImageInput

pillow = pytest.importorskip("PIL.Image")

#: Mean 0 and a deviation of 1/255: the numbers are the pixels.
AS_IT_IS = ImageInput(
    size=(4, 4),
    channels="rgb",
    layout="nhwc",
    resize="stretch",
    resampling="bilinear",
    mean=(0.0,) * 3,
    std=(1 / 255,) * 3,
    max_pixels=2**30,
)
#: Red on the left, blue on the right.
HALVES = np.zeros((4, 4, 3), np.uint8)
HALVES[:, :2, 0], HALVES[:, 2:, 2] = 255, 255


def _noise(height: int, width: int, *, channels: int = 3) -> NDArray[np.uint8]:
    made = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return made if channels > 1 else made[:, :, 0]


def _prepared(image: Image, recipe: ImageInput = AS_IT_IS) -> NDArray[Any]:
    """Return the numbers of an image without the last bits that a division by 255 and back costs."""
    found = ImageReader(recipe).pixels(image)
    assert found.dtype == np.float32
    return found.round(3)


def _sized(height: int, width: int, **changes: Any) -> ImageInput:
    return AS_IT_IS._replace(size=(height, width), **changes)


def _file(image: Any, format: str = "PNG", **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, format, **options)
    return made.getvalue()


def _png(width: int, height: int, *, bits: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """Return a PNG whose header says what it likes: https://www.w3.org/TR/png-3/."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_the_same_picture_is_the_same_numbers_however_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "halves.png"
    path.write_bytes(_file(pillow.fromarray(HALVES)))
    ways: list[Image] = [str(path), path, path.read_bytes(), HALVES, pillow.fromarray(HALVES)]
    for way in ways:
        found = _prepared(way)
        assert found.shape == (4, 4, 3)
        np.testing.assert_array_equal(found, HALVES)


def test_one_image_and_a_list_of_them_are_told_apart() -> None:
    assert listed(HALVES)[1] and listed("a.png")[1] and listed(b"x")[1] and listed(pillow.fromarray(HALVES))[1]
    assert [len(listed(several)[0]) for several in ([HALVES], (HALVES, "b"), np.stack([HALVES] * 3))] == [1, 2, 3]
    assert not listed([HALVES])[1] and not listed(np.stack([HALVES]))[1]


def test_the_shorter_side_and_the_middle_are_those_of_torchvision() -> None:
    # torchvision.transforms.functional: resize to (int(long), short), centre at int(round((have - want) / 2.0)).
    image = pillow.fromarray(_noise(50, 71))
    recipe = _sized(24, 24, resize="cover", resize_to=28)
    resized = np.asarray(image.resize((int(28 * 71 / 50), 28), pillow.Resampling.BILINEAR))
    np.testing.assert_array_equal(_prepared(image, recipe), resized[2:26, 8:32])
    tall = image.transpose(pillow.Transpose.TRANSPOSE)
    resized = np.asarray(tall.resize((28, int(28 * 71 / 50)), pillow.Resampling.BICUBIC))
    np.testing.assert_array_equal(_prepared(tall, recipe._replace(resampling="bicubic")), resized[8:32, 2:26])


def test_what_is_contained_stands_in_the_middle_of_its_fill() -> None:
    image = _noise(20, 40)
    found = _prepared(image, _sized(9, 10, resize="contain", fill=7))
    resized = np.asarray(pillow.fromarray(image).resize((10, 5), pillow.Resampling.BILINEAR))
    np.testing.assert_array_equal(found[2:7], resized)
    assert (found[:2] == 7).all() and (found[7:] == 7).all()


def test_the_recipe_bounds_the_pixels_too() -> None:
    with pytest.raises(RequestError, match="image 0: expected 1 to 15 pixels, found 4 x 4"):
        _prepared(HALVES, AS_IT_IS._replace(max_pixels=15))


def test_the_central_part_is_that_of_tensorflow() -> None:
    # tf.image.central_crop: int((side - side * fraction) / 2) is left out at both ends.
    image = pillow.fromarray(_noise(40, 60))
    recipe = _sized(36, 54, resize="central", fraction=0.875)
    np.testing.assert_array_equal(_prepared(image, recipe), np.asarray(image)[2:38, 3:57])


def test_plain_bilinear_resizing_takes_the_pixels_around_each_point() -> None:
    line = np.array([0, 10], np.uint8).reshape(1, 2, 1)
    # Centres at halves: the points -.25, .25, .75 and 1.25 of the old line.
    assert bilinear_plain(line, 1, 4).ravel().tolist() == [0, 2.5, 7.5, 10]
    # Where an image shrinks, what lies between is passed over: 8 to 2 are the points 1.5 and 5.5.
    line = np.arange(0, 80, 10, dtype=np.uint8).reshape(1, 8, 1)
    assert bilinear_plain(line, 1, 2).ravel().tolist() == [15, 55]
    recipe = _sized(5, 3, resampling="bilinear-plain")
    image = _noise(9, 8)
    np.testing.assert_allclose(_prepared(image, recipe), bilinear_plain(image, 5, 3), atol=1e-3)


def test_numbers_are_scaled_and_shifted_by_channel() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    recipe = AS_IT_IS._replace(mean=mean, std=std, layout="nchw")
    found = ImageReader(recipe).pixels(HALVES)
    assert found.shape == (3, 4, 4)
    np.testing.assert_allclose(found, ((HALVES / 255 - mean) / std).transpose(2, 0, 1), rtol=1e-5)
    np.testing.assert_array_equal(_prepared(HALVES, AS_IT_IS._replace(channels="bgr")), HALVES[:, :, ::-1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_seen_as_people_see_it(orientation: int) -> None:
    seen = _noise(4, 4)
    turns: dict[int, Callable[[Any], Any]] = {
        1: lambda stored: stored,
        2: lambda stored: stored[:, ::-1],
        3: lambda stored: stored[::-1, ::-1],
        4: lambda stored: stored[::-1],
        5: lambda stored: stored.transpose(1, 0, 2),
        6: lambda stored: np.rot90(stored, -1),
        7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
        8: lambda stored: np.rot90(stored),
    }
    exif = pillow.Exif()
    exif[0x0112] = orientation
    found = _prepared(_file(pillow.fromarray(seen), exif=exif))
    np.testing.assert_array_equal(found, turns[orientation](seen))


def test_grey_is_repeated_and_colours_become_grey() -> None:
    grey = _noise(4, 4, channels=1)
    np.testing.assert_array_equal(_prepared(grey), np.repeat(grey[:, :, np.newaxis], 3, axis=2))
    found = _prepared(HALVES, AS_IT_IS._replace(channels="gray", mean=(0.0,), std=(1 / 255,)))
    # ITU-R 601-2: .299 of red, .114 of blue.
    assert found.shape == (4, 4, 1) and np.unique(found).tolist() == [29, 76]


def test_transparency_is_dropped_as_training_code_drops_it() -> None:
    clear = np.dstack([HALVES, np.zeros((4, 4), np.uint8)])
    np.testing.assert_array_equal(_prepared(clear), HALVES)
    np.testing.assert_array_equal(_prepared(_file(pillow.fromarray(clear))), HALVES)


def test_a_palette_is_looked_up_with_transparency_or_without() -> None:
    image = pillow.fromarray(HALVES).quantize(4)
    ways: list[dict[str, Any]] = [{}, {"transparency": b"\x00\x80"}]
    for options in ways:
        np.testing.assert_allclose(_prepared(_file(image, **options)), HALVES, atol=2)


def test_of_sixteen_bits_the_upper_eight_count() -> None:
    deep = (_noise(4, 4, channels=1).astype(np.uint16) << 8) + 77
    expected = np.repeat((deep >> 8)[:, :, np.newaxis], 3, axis=2)
    np.testing.assert_array_equal(_prepared(deep), expected)
    np.testing.assert_array_equal(_prepared(_file(pillow.fromarray(deep))), expected)
    np.testing.assert_array_equal(_prepared(_file(pillow.fromarray(deep), "TIFF")), expected)
    colours = HALVES.astype(np.uint16) * 257
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in colours)
    np.testing.assert_array_equal(_prepared(_png(4, 4, bits=16, rows=rows)), HALVES)


def test_cmyk_and_animations_have_their_documented_answer() -> None:
    image = pillow.fromarray(HALVES)
    cmyk = image.convert("CMYK")
    np.testing.assert_array_equal(_prepared(_file(cmyk, "TIFF")), HALVES)
    np.testing.assert_allclose(_prepared(_file(cmyk, "JPEG", quality=100, subsampling=0)), HALVES, atol=40)
    other = pillow.fromarray(HALVES[:, ::-1])
    animated = _file(image, "GIF", save_all=True, append_images=[other], duration=10)
    np.testing.assert_array_equal(_prepared(animated), HALVES)


GOOD = _file(pillow.fromarray(_noise(64, 64)))
PHOTO = _file(pillow.fromarray(_noise(64, 64)), "JPEG")

REFUSED = {
    "nothing": (b"", "expected an image of 1 to"),
    "text": (b"hello, world", "expected an image of BMP"),
    "half a PNG": (GOOD[: len(GOOD) // 2], "expected an image of BMP"),
    "half a JPEG": (PHOTO[: len(PHOTO) // 2], "truncated"),
    "a PNG of zeros behind its header": (GOOD[:33] + bytes(500), "expected an image of BMP"),
    "a bomb": (_png(9_000, 9_000), f"expected 1 to {PIXELS_CEILING} pixels, found 9000 x 9000"),
    "a bomb that Pillow refuses": (_png(20_000, 20_000), "could be decompression bomb"),
    "a bomb of all numbers that there are": (_png(2**31 - 1, 2**31 - 1), "could be decompression bomb"),
    "a line without end": (_png(30_000_000, 1), "expected"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "expected an image of BMP"),
    "numbers of 32 bits": (_file(pillow.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "found the mode F"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damaged_and_hostile_images_are_one_clear_error(name: str) -> None:
    data, says = REFUSED[name]
    with pytest.raises(RequestError, match=says) as refused:
        ImageReader(_sized(224, 224, resize="cover", resize_to=256)).pixels(data, 1)
    assert str(refused.value).startswith("image 1: ") and "\n" not in str(refused.value)


def test_every_cut_of_a_file_is_an_error_or_an_image() -> None:
    for data in (GOOD, PHOTO, _file(pillow.fromarray(HALVES), "GIF"), _file(pillow.fromarray(HALVES), "BMP")):
        for cut in range(0, len(data), max(1, len(data) // 60)):
            try:
                assert _prepared(data[:cut]).shape == (4, 4, 3)
            except RequestError as error:
                assert "expected" in str(error)


def test_nothing_large_is_allocated_for_an_image_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(_png(9_000, 9_000))
    (tmp_path / "line.png").write_bytes(_png(30_000_000, 1))
    child = """
import resource, sys
from edge_embed.images import ImageReader
from edge_embed_bundle.encoders import ImageInput
from edge_embed.errors import RequestError
from PIL import Image
Image.init()
reader = ImageReader(ImageInput((224, 224), "gray", "nhwc", "cover", "bilinear", (0.0,), (1.0,), 2**30, 256))
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + 32 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, room))
for path in sys.argv[1:]:
    try:
        reader.pixels(path)
    except RequestError as error:
        print(error)
"""
    paths = [str(tmp_path / name) for name in ("bomb.png", "line.png")]
    done = subprocess.run([sys.executable, "-c", child, *paths], capture_output=True, text=True, check=True)
    bomb, line = done.stdout.splitlines()
    assert "found 9000 x 9000" in bomb
    assert "expected sides of at most 65535 pixels, found 30000000 x 1" in line


@pytest.mark.parametrize("resampling", ["bilinear", "lanczos", "bilinear-plain"])
def test_a_picture_that_is_taken_costs_little_more_than_its_pixels(tmp_path: Path, resampling: str) -> None:
    (tmp_path / "long.png").write_bytes(_file(pillow.new("L", (65_535, 64))))
    child = """
import resource, sys
from edge_embed.images import ImageReader
from edge_embed_bundle.encoders import ImageInput
from PIL import Image
Image.init()
recipe = ImageInput((224, 224), "rgb", "nhwc", "stretch", sys.argv[2], (0.0,) * 3, (1.0,) * 3, 2**30)
reader = ImageReader(recipe)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert reader.pixels(sys.argv[1]).shape == (224, 224, 3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", child, str(tmp_path / "long.png"), resampling]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # 4 MiB of grey, 12 or 16 of colours, and what Pillow, numpy and the weights take beside them.
    assert int(done.stdout) < 64 * 1024


def test_a_picture_whose_longer_side_would_become_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "line.png").write_bytes(_png(65_000, 1))
    with pytest.raises(RequestError, match="found 65000 x 1, whose longer one would become"):
        _prepared(str(tmp_path / "line.png"), _sized(2_000, 2_000, resize="cover", resize_to=2_000))


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((4, 4, 2), np.uint8), "uint8 (4, 4, 2)"),
        (np.zeros((4, 4, 3), np.float32), "float32 (4, 4, 3)"),
        (np.zeros(4, np.uint8), "uint8 (4,)"),
        (np.zeros((0, 4, 3), np.uint8), "an array of shape (0, 4, 3)"),
    ],
)
def test_arrays_of_another_kind_are_refused(array: NDArray[Any], found: str) -> None:
    with pytest.raises(RequestError) as refused:
        _prepared(array)
    assert f"found {found}" in str(refused.value)


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "something else"),
        (tmp_path / "no", "No such"),
    ):
        with pytest.raises(RequestError, match=says):
            _prepared(path)
    with pytest.raises(RequestError, match="image 0: expected a path, bytes, an array or an image, found int"):
        _prepared(7)  # type: ignore[arg-type]
