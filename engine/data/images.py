"""Reading pictures: any common file becomes uint8 RGB, or one line that says why it cannot.

What is decided here, for every format alike:

- The size is read from the header and checked before a pixel is decoded.
- An orientation tag (EXIF, or XMP) is applied, as every viewer does; `exif=False` leaves pixels as stored
  (what psa, irn and SEAM do; VOC and COCO files carry no such tag, so there is no difference on them).
- Transparency (alpha, a transparent palette entry or colour) is laid over white. Fully opaque files are
  unaffected; dropping alpha instead would show whatever colour the editor left under it.
- 16-bit samples keep their high byte: exact for files widened from 8 bits. 12-bit ones keep their high 8 bits; so do
  those of a 16-bit file whose largest sample is below 4096, as cameras and scanners of 12 bits write them (a PPM
  states its largest value, and is scaled by that; transparent pictures in colour keep their high byte).
- CMYK is converted with the plain formula; Adobe's inverted JPEGs are un-inverted. Colour profiles are not
  applied, in any format.
- Of several frames or pages, the first.
- A truncated file is refused, never filled up. (Damage in the middle of a JPEG that leaves its markers
  intact cannot be told from a picture by libjpeg's own standards, and is decoded.)

No global state of Pillow or OpenCV is read or changed, so any number of threads may call in.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.paths import existing, os_reason

DEFAULT_MAX_PIXELS = 4_000_000

# What a folder is searched for. The content, not the suffix, decides how a file is read.
SUFFIXES = frozenset(
    [
        *[".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff"],
        *[".webp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"],
    ]
)

RGB: TypeAlias = npt.NDArray[np.uint8]

# Pillow's own Image.open is not used: it tries every format it knows (EPS starts Ghostscript) and refuses
# large files by a limit that is global to the process and without telling their size.
_OPENERS: tuple[tuple[str, re.Pattern[bytes], type[ImageFile.ImageFile]], ...] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    ("TIFF", re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), TiffImagePlugin.TiffImageFile),
    ("WebP", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), WebPImagePlugin.WebPImageFile),
    ("GIF", re.compile(rb"GIF8[79]a"), GifImagePlugin.GifImageFile),
    ("PPM", re.compile(rb"P[1-6]\s"), PpmImagePlugin.PpmImageFile),
    ("BMP", re.compile(rb"BM"), BmpImagePlugin.BmpImageFile),
)
_ORIENTATION = 0x0112
_TWELVE_BITS = 1 << 12
_FAST_JPEG_BYTES = 64 << 20  # more than any JPEG within the pixel limit needs; larger ones are streamed
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_SCANS = 200  # cameras and editors write 1 to 14
_JPEG_SEGMENTS = 10_000
_PPM_HEADER = re.compile(rb"P[1-6](?:\s|#[^\n\r]*[\n\r])+\d+(?:\s|#[^\n\r]*[\n\r])+\d+")
_PPM_HEADER_BYTES = 1 << 16
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # neither stuffing, fill nor restart


class TooManyPixels(InputError):
    """A picture over the pixel limit: refused before a pixel is decoded."""


def read_image(
    path: str | os.PathLike[str], max_pixels: int = DEFAULT_MAX_PIXELS, *, exif: bool = True
) -> RGB:
    """Decode a picture to uint8 RGB, H×W×3, C-contiguous, writable; see the module for every conversion.

    Raises InputError, one line with the path and the reason, for a file that is missing, unreadable, no
    picture, damaged, truncated, or of more than `max_pixels` pixels (by its header, before any decoding).
    """
    with _one_line_errors(path), _open_regular(path) as file:
        return _decode(file, path, max_pixels, exif)


def decode_image(
    data: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS, *, exif: bool = True
) -> RGB:
    """`read_image` of a file's content; `name` stands for the path in errors. Raises InputError, and of it
    TooManyPixels for a picture over the limit."""
    with _one_line_errors(name):
        if not data:
            raise InputError(f"{shown(name)}: empty (0 bytes)")
        return _decode(io.BytesIO(data), name, max_pixels, exif)


def _decode(file: IO[bytes], path: str | os.PathLike[str], max_pixels: int, exif: bool) -> RGB:
    header = _read_header(file, path, max_pixels)
    pixels = _decode_jpeg(file, path, header.plain_jpeg) if header.format == "JPEG" else None
    if pixels is None:
        pixels = _to_rgb(header.image, header.format, file)
    if pixels.shape[:2] != header.stored:  # a GIF frame may overhang the screen its header gives
        _check_pixels(path, pixels.shape[1], pixels.shape[0], max_pixels)
    if exif:
        pixels = _orient(pixels, header.orientation)
    return np.require(pixels, np.uint8, ["C", "W", "O"])


def image_size(path: str | os.PathLike[str], *, exif: bool = True) -> tuple[int, int]:
    """(height, width) that `read_image` would give, from the header alone; raises InputError."""
    with _one_line_errors(path), _open_regular(path) as file:
        header = _read_header(file, path, None)
        height, width = header.stored
        return (width, height) if exif and header.orientation >= 5 else (height, width)


def without_suffix(name: str) -> str:
    """An image's id from its path or name: without the suffix, if it is a picture's."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - plain strings: this runs a million times
    return stem if suffix.lower() in SUFFIXES else name


@dataclass(frozen=True)
class _Header:
    format: str
    image: ImageFile.ImageFile  # nothing decoded yet
    stored: tuple[int, int]  # height, width before orientation
    orientation: int  # 1..8; 1 for TIFF, which Pillow turns itself

    @property
    def plain_jpeg(self) -> bool:
        return self.format == "JPEG" and self.image.mode in ("RGB", "L")


def _open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    try:
        status = os.stat(path)  # noqa: PTH116 - one call serves all three questions
    except FileNotFoundError:
        path = existing(Path(path))
        status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
        raise InputError(f"{shown(path)}: is not a regular file")
    if status.st_size == 0:
        raise InputError(f"{shown(path)}: empty file (0 bytes)")
    return Path(path).open("rb")


def _read_header(file: IO[bytes], path: str | os.PathLike[str], max_pixels: int | None) -> _Header:
    """Recognise the format by content and read the header; the size is checked if `max_pixels` is given."""
    start = file.read(32)
    file.seek(0)
    found = next(((name, opener) for name, magic, opener in _OPENERS if magic.match(start)), None)
    if found is None:
        raise InputError(f"{shown(path)}: {_not_an_image(start)}")
    name, opener = found
    if name == "WebP":  # its opener already makes room for the canvas
        _check_pixels(path, *_webp_size(start), max_pixels)
    _check_header_length(file, name)
    image = opener(file, os.fspath(path))
    width, height = image.size
    _check_pixels(path, width, height, max_pixels)
    return _Header(name, image, (height, width), 1 if name == "TIFF" else _orientation(image))


def _check_header_length(file: IO[bytes], name: str) -> None:
    """Refuse headers that Pillow would read for minutes: byte by byte (PPM), segment by segment (JPEG)."""
    if name == "PPM" and not _PPM_HEADER.match(file.read(_PPM_HEADER_BYTES)):
        raise ValueError(f"no size in its first {_PPM_HEADER_BYTES} bytes")
    if name == "JPEG":
        with _whole(file) as data:
            any(code == _JPEG_SCAN for code in _jpeg_markers(data))
    file.seek(0)


def _not_an_image(start: bytes) -> str:
    if start[4:8] == b"ftyp":
        return "HEIC, AVIF and video files are not read; convert it to JPEG or PNG"
    known = ", ".join(name for name, _, _ in _OPENERS)
    return f"not a picture that can be read ({known}), whatever its suffix says"


def _check_pixels(path: str | os.PathLike[str], width: int, height: int, limit: int | None) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{shown(path)}: damaged: its header says {width}×{height} pixels")
    if limit is not None and width * height > limit:
        raise TooManyPixels(
            f"{shown(path)}: {width}×{height} = {_mega(width * height)} MP is over the limit of "
            f"{_mega(limit)} MP; shrink it or raise --max-pixels"
        )


def _mega(pixels: int) -> str:
    """Millions, with as many digits as it takes not to show a size just over the limit as the limit."""
    return f"{pixels / 1e6:.6f}".rstrip("0").rstrip(".")


def _webp_size(start: bytes) -> tuple[int, int]:
    """(width, height) from the first 30 bytes of a WebP file."""
    kind = start[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", start, 26)
    return width & 0x3FFF, height & 0x3FFF


def _orientation(image: Image.Image) -> int:
    """The orientation tag, 1 if there is none; a damaged tag is no reason to refuse a picture."""
    try:
        # The base class's method: PNG's own decodes the whole picture to look for a tag behind it.
        value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: RGB, orientation: int) -> RGB:
    """Stored pixels as they are to be looked at (EXIF 2.32, tag 274)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode_jpeg(file: IO[bytes], path: str | os.PathLike[str], plain: bool) -> RGB | None:
    """Decode with OpenCV: the same pixels as Pillow's, about a quarter faster. None: let Pillow try.

    OpenCV 4 fills what a truncated file lacks with grey and says nothing, so the end is looked for first. Every
    scan of a progressive file goes over the whole picture, and takes a few bytes: they are counted first, too.
    """
    with _whole(file) as data:
        size = len(data)
        scans, complete = 0, False
        for code in _jpeg_markers(data):
            scans += code == _JPEG_SCAN
            if complete := code == _JPEG_END:
                break
        if scans > _JPEG_SCANS:
            raise InputError(f"{shown(path)}: JPEG with over {_JPEG_SCANS} scans; refused, save it again")
        if not plain or size > _FAST_JPEG_BYTES:
            return None
        if not complete:
            raise InputError(f"{shown(path)}: truncated JPEG (its end is missing); copy or download it again")
        encoded = np.frombuffer(data[:], np.uint8)
    try:
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if bgr is None else np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr), np.uint8)


def _whole(file: IO[bytes]) -> AbstractContextManager[memoryview | mmap.mmap]:
    """A file's content, not copied."""
    if isinstance(file, io.BytesIO):
        return file.getbuffer()
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _jpeg_markers(data: memoryview | mmap.mmap) -> Iterator[int]:
    """The codes of a JPEG's markers (a thumbnail inside a segment has markers of its own: not those).

    Raises ValueError for more than any file has, which Pillow would go through one by one.
    """
    at = 2
    for _ in range(_JPEG_SEGMENTS):
        marker = _JPEG_MARKER.search(data, at)
        if marker is None:
            return
        at = marker.end()
        code = data[at - 1]
        yield code
        if code != 0x01:  # every other marker here is followed by its segment's length
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise ValueError(f"over {_JPEG_SEGMENTS} segments")


def _to_rgb(image: ImageFile.ImageFile, name: str, file: IO[bytes]) -> RGB:
    """Decode with Pillow and bring every mode to RGB."""
    # Pillow's word for the samples in the file: RGB;16B
    wide = bool(image.tile) and ";16" in str(image.tile[0].args)
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and name in ("PNG", "PPM")):
        samples = np.asarray(image)
        narrow = name != "PPM" and samples.size > 0 and samples.max() < _TWELVE_BITS
        high = samples >> (4 if narrow else _bits(image) - 8)
        return np.repeat(high.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit samples have no agreed range; convert it to 8 or 16 bits")
    if not image.has_transparency_data:
        pixels = np.asarray(image.convert("RGB"))
        narrow = wide and name != "PPM" and pixels.max() < _TWELVE_BITS >> 8
        return _twelve_bits(file, pixels) if narrow else pixels
    colour = image.convert("RGBA")
    white = Image.new("RGBA", colour.size, "white")
    return np.asarray(Image.alpha_composite(white, colour).convert("RGB"))


def _twelve_bits(file: IO[bytes], high: RGB) -> RGB:
    """The high 8 of 12 bits of a colour file of 16, of which Pillow gives the `high` byte only. Raises ValueError."""
    file.seek(0)
    samples = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is not None and samples.dtype == np.uint16 and samples.shape == high.shape:
        rgb = np.asarray(samples[:, :, ::-1], np.uint16)
        if np.array_equal(rgb >> 8, high):  # turned alike, too
            return np.asarray(rgb >> 4, np.uint8)
    raise ValueError(
        "16-bit colour that holds 12 bits only, in a form that is not read; convert it to 8 bits"
    )


def _bits(image: Image.Image) -> int:
    """Significant bits of a 16-bit greyscale file: TIFF may hold 12."""
    tags = getattr(image, "tag_v2", None)
    return int(tags.get(258, (16,))[0]) if tags is not None else 16


@contextmanager
def _one_line_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except OSError as e:
        reason = os_reason(e) if e.errno is not None or not e.args else f"damaged: {shown(e)}"
        raise InputError(f"{shown(path)}: {reason}") from None
    except MemoryError:
        raise InputError(f"{shown(path)}: not enough memory to decode it") from None
    except Exception as e:  # on damaged files decoders raise nearly anything: SyntaxError, struct.error, …
        raise InputError(f"{shown(path)}: cannot be decoded: {shown(e) or type(e).__name__}") from None
