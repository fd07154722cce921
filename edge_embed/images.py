"""From images to the numbers that an encoder takes, by the recipe of a manifest.

* What comes in is a path, the bytes of a file, an array, a Pillow image, or a list of these.
* A file is one of ``FORMATS``, at most ``BYTES_CEILING`` bytes and ``PIXELS_CEILING`` pixels: its header is read and
  judged before a pixel is decoded. Formats that call other programs (EPS) are never tried.
* It is seen as people see it: turned as its EXIF says; of an animation the first frame, of pages the first one.
* Colours are what image loaders of training code make of them (Pillow's ``convert``): transparency is dropped, a
  palette is looked up, CMYK is converted without profiles, grey is repeated, and RGB becomes grey by ITU-R 601. Of
  16 bits the upper eight count. Numbers of 32 bits say nothing about their range, and are refused.

Arrays are uint8 or uint16: ``(h, w)``, ``(h, w, 1)``, ``(h, w, 3)`` in the order RGB, ``(h, w, 4)`` with transparency.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_embed.errors import MissingExtraError, RequestError
from edge_embed_bundle.encoders import CHANNELS, ImageInput

if TYPE_CHECKING:
    from PIL import Image as PillowImage

#: One image: a path, a file's bytes, an array, or a Pillow image.
Image: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[Any] | PillowImage.Image"

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
BYTES_CEILING = 2**28
#: 100 MB once decoded, more than the largest camera of a board has.
PIXELS_CEILING = 2**25
#: The longest side of a JPEG. Resizing a longer one takes a table of weights that is larger than the picture.
SIDE_CEILING = 65_535

_ORIENTATION = 0x0112
_AXES_OF_AN_IMAGE = (2, 3)
_AXES_OF_A_BATCH = 4


class ImageReader:
    """Reads the pictures of one encoder; ``recipe`` says of what size, geometry, colours and numbers they become."""

    def __init__(self, recipe: ImageInput) -> None:
        try:
            from PIL import Image
        except ImportError as error:
            raise MissingExtraError.of("Pillow", "image", "encoding images") from error
        self._pillow: Any = Image
        self._recipe = recipe
        self._max_pixels = min(recipe.max_pixels, PIXELS_CEILING)

    def pixels(self, image: Image, place: int = 0) -> NDArray[np.float32]:
        """Return the numbers ``(h, w, c)`` or ``(c, h, w)`` of an image, in the layout of the recipe.

        Args:
            image: the picture.
            place: where it stands among those that were given, for an error's sake.

        Raises:
            RequestError: the image is absent, damaged, too large or of a kind that is not read.
        """
        where = str(image) if isinstance(image, str | os.PathLike) else f"image {place}"
        with self._opened(image, where) as opened, _faults_are_the_images(where):
            self._check_size(opened.size, where)
            fitted = self._fitted(self._coloured(self._turned(opened), where))
        return self._numbers(fitted)

    def _check_size(self, size: tuple[int, int], where: str) -> None:
        """Refuse an image too large to decode, or so long that its resized self would be."""
        width, height = size
        if not width or not height or width * height > self._max_pixels:
            raise RequestError(f"{where}: expected 1 to {self._max_pixels} pixels, found {width} x {height}")
        if max(size) > SIDE_CEILING:
            raise RequestError(f"{where}: expected sides of at most {SIDE_CEILING} pixels, found {width} x {height}")
        if self._recipe.resize_to is not None:
            resized = _in_proportion(size, self._recipe.resize_to)
            if resized[0] * resized[1] > PIXELS_CEILING:
                raise RequestError(
                    f"{where}: expected an image whose shorter side becomes {self._recipe.resize_to} pixels, "
                    f"found {width} x {height}, whose longer one would become {max(resized)}"
                )

    @contextlib.contextmanager
    def _opened(self, image: Image, where: str) -> Iterator[Any]:
        """Open what an image is given as; a file is closed in the end, and nothing is decoded yet."""
        if isinstance(image, self._pillow.Image):
            yield image
        elif isinstance(image, np.ndarray):
            yield self._of_array(image, where)
        elif isinstance(image, bytes | bytearray | memoryview):
            with self._of_file(io.BytesIO(image), len(image), where) as opened:
                yield opened
        elif isinstance(image, str | os.PathLike):
            with _plain_file(Path(image)) as (file, size), self._of_file(file, size, where) as opened:
                yield opened
        else:
            raise RequestError(f"{where}: expected a path, bytes, an array or an image, found {type(image).__name__}")

    @contextlib.contextmanager
    def _of_file(self, file: Any, size: int, where: str) -> Iterator[Any]:
        if not 0 < size <= BYTES_CEILING:
            raise RequestError(f"{where}: expected an image of 1 to {BYTES_CEILING} bytes, found {size}")
        with _faults_are_the_images(where):
            opened = self._pillow.open(file, formats=FORMATS)
        with opened:
            yield opened

    def _of_array(self, pixels: NDArray[Any], where: str) -> Any:
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        if pixels.dtype != np.uint8 or pixels.ndim not in _AXES_OF_AN_IMAGE or channels not in (1, 3, 4):
            raise RequestError(
                f"{where}: expected an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of uint8 or uint16, "
                f"found {pixels.dtype} {pixels.shape}"
            )
        if not pixels.size:
            raise RequestError(f"{where}: expected at least one pixel, found an array of shape {pixels.shape}")
        return self._pillow.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and channels == 1 else pixels)

    def _turned(self, image: Any) -> Any:
        """Turn an image as its EXIF says: https://www.cipa.jp/std/documents/e/DC-008-2012_E.pdf, 4.6.4."""
        how = self._pillow.Transpose
        turns = {
            2: how.FLIP_LEFT_RIGHT,
            3: how.ROTATE_180,
            4: how.FLIP_TOP_BOTTOM,
            5: how.TRANSPOSE,
            6: how.ROTATE_270,
            7: how.TRANSVERSE,
            8: how.ROTATE_90,
        }
        turn = turns.get(image.getexif().get(_ORIENTATION))
        return image if turn is None else image.transpose(turn)

    def _coloured(self, image: Any, where: str) -> Any:
        """Return the image in RGB or grey."""
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
            # Older Pillows open a PNG of 16 bits as one of 32, and cut it off at 255 when it becomes grey.
            image = self._pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise RequestError(f"{where}: expected pixels of 8 or 16 bits, found the mode {image.mode}")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        wanted = "L" if CHANNELS[self._recipe.channels] == 1 else "RGB"
        return image if image.mode == wanted else image.convert(wanted)

    def _fitted(self, image: Any) -> NDArray[Any]:
        """Return the pixels ``(h, w, c)`` of an image in the size of the recipe; 0 to 255, uint8 or float32."""
        recipe = self._recipe
        height, width = recipe.size
        if recipe.resize == "cover" and recipe.resize_to is not None:
            pixels = self._resized(image, _in_proportion(image.size, recipe.resize_to))
            top, left = (round((have - want) / 2) for have, want in zip(pixels.shape, recipe.size, strict=False))
            return pixels[top : top + height, left : left + width]
        if recipe.resize == "contain":
            ratio = min(height / image.size[1], width / image.size[0])
            inside = (
                min(width, max(1, round(image.size[0] * ratio))),
                min(height, max(1, round(image.size[1] * ratio))),
            )
            pixels = self._resized(image, inside)
            whole = np.full((height, width, pixels.shape[2]), recipe.fill, pixels.dtype)
            top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
            whole[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            return whole
        if recipe.resize == "central" and recipe.fraction is not None:
            margins = [int((side - side * recipe.fraction) / 2) for side in image.size]
            image = image.crop((*margins, *(side - margin for side, margin in zip(image.size, margins, strict=True))))
        return self._resized(image, (width, height))

    def _resized(self, image: Any, size: tuple[int, int]) -> NDArray[Any]:
        """Return the pixels ``(h, w, c)`` of an image that is brought to a size (width, height)."""
        name = self._recipe.resampling
        if name == "bilinear-plain":
            pixels = np.asarray(image)
            return bilinear_plain(pixels.reshape(*pixels.shape[:2], -1), size[1], size[0])
        if image.size != size:
            image = image.resize(size, self._pillow.Resampling[name.upper()])
        pixels = np.asarray(image)
        return pixels.reshape(*pixels.shape[:2], -1)

    def _numbers(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        recipe = self._recipe
        if recipe.channels == "bgr":
            pixels = pixels[:, :, ::-1]
        mean, std = np.array(recipe.mean, np.float32), np.array(recipe.std, np.float32)
        numbers: NDArray[np.float32] = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        return np.ascontiguousarray(numbers.transpose(2, 0, 1)) if recipe.layout == "nchw" else numbers


def listed(images: Image | Sequence[Image]) -> tuple[list[Image], bool]:
    """Return images as a list, and whether one alone was given; an array of four axes is a list of images."""
    if isinstance(images, np.ndarray):
        return (list(images), False) if images.ndim == _AXES_OF_A_BATCH else ([images], True)
    if isinstance(images, list | tuple):
        return list(images), False
    return [images], True  # type: ignore[list-item]  # what is no image is refused where it is opened


def bilinear_plain(pixels: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    """Return pixels ``(h, w, c)`` resized to ``(height, width, c)`` float32 from the four pixels around each point.

    As ``tf.image.resize`` with its defaults, and as OpenCV's ``INTER_LINEAR``: pixels have their centres at halves,
    and beyond the border its own pixel goes on.
    """
    rows, columns = (_neighbours(have, want) for have, want in zip(pixels.shape[:2], (height, width), strict=True))
    # The four corners alone: whole lines of a large picture would take more memory than it does.
    left, right = (
        _between(pixels[np.ix_(rows[0], side)], pixels[np.ix_(rows[1], side)], rows[2][:, np.newaxis, np.newaxis])
        for side in columns[:2]
    )
    made: NDArray[np.float32] = left + (right - left) * columns[2][:, np.newaxis]
    return made


def _between(first: NDArray[Any], second: NDArray[Any], share: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = first.astype(np.float32)
    found: NDArray[np.float32] = wide + (second.astype(np.float32) - wide) * share
    return found


def _neighbours(have: int, want: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return for each new pixel the old one before it, the one after it, and the share of the latter."""
    points = (np.arange(want) + 0.5) * (have / want) - 0.5
    before = np.floor(points).astype(np.int64)
    share = (points - before).astype(np.float32)
    return before.clip(0, have - 1), (before + 1).clip(0, have - 1), share


def _in_proportion(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return a size (width, height) whose shorter side is ``shorter``; the longer one as torchvision rounds it."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


@contextlib.contextmanager
def _plain_file(path: Path) -> Iterator[tuple[Any, int]]:
    """Open a file and say its size; a pipe would make its reader wait, a device has no end."""
    try:
        file = open(path, "rb", opener=_at_once)  # noqa: SIM115, closed below
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: expected an image, found: {error}") from error
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RequestError(f"{path}: expected an image's file, found something else")
        yield file, status.st_size


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


@contextlib.contextmanager
def _faults_are_the_images(where: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes into an error that names the image."""
    try:
        yield
    except RequestError:
        raise
    except MemoryError as error:
        raise RequestError(f"{where}: expected a picture that fits into memory, found one that does not") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, warnings made errors, ...
        said = "".join(str(error).splitlines()[:1]) or type(error).__name__
        raise RequestError(f"{where}: expected an image of {', '.join(FORMATS)}, found: {said[:200]}") from error
