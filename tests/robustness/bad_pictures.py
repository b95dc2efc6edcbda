"""Pictures that are not what they seem: random damage to files of every format, and what an attacker would craft."""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from PIL import Image

from tests.robustness.mutate import Rng, damaged

BOMB = 256 << 20
"""What the compressed bombs inflate to, in bytes."""


def write_bad_pictures(folder: Path, count: int, pictures: list[Path], rng: Rng) -> list[str]:
    """Fill `folder` with `count` files named bad…: the crafted ones first, then random damage. Returns the names.

    pictures: good ones to start from. What is damaged may still be a picture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    for suffix, make in _crafted(pictures[0]):
        if len(names) == count:
            return names
        names.append(f"bad{len(names):03d}-{make.__name__.strip('_')}{suffix}")
        make(folder / names[-1])
    for suffix, data in _damaged(pictures, rng):
        if len(names) == count:
            return names
        names.append(f"bad{len(names):03d}-damaged{suffix}")
        (folder / names[-1]).write_bytes(data)
    return names


def _damaged(pictures: list[Path], rng: Rng) -> Iterator[tuple[str, bytes]]:
    encoded = [
        (suffix, _encode(Image.open(p).convert(mode), options))
        for p in pictures[:4]
        for suffix, mode, options in _FORMATS
    ]
    while True:
        suffix, data = encoded[int(rng.integers(len(encoded)))]
        if rng.random() < 0.1:  # a wrong suffix is no damage, but not what it says
            suffix = _FORMATS[int(rng.integers(len(_FORMATS)))][0]
        yield suffix, damaged(rng, data)


_FORMATS: tuple[tuple[str, str, dict[str, object]], ...] = (
    (".jpg", "RGB", {"format": "JPEG", "quality": 90}),
    (".jpg", "RGB", {"format": "JPEG", "progressive": True}),
    (".jpg", "CMYK", {"format": "JPEG"}),
    (".png", "RGB", {"format": "PNG"}),
    (".png", "RGBA", {"format": "PNG"}),
    (".png", "P", {"format": "PNG"}),
    (".webp", "RGB", {"format": "WEBP"}),
    (".webp", "RGBA", {"format": "WEBP", "lossless": True}),
    (".tif", "RGB", {"format": "TIFF"}),
    (".tif", "RGB", {"format": "TIFF", "compression": "tiff_lzw"}),
    (".tif", "RGB", {"format": "TIFF", "compression": "tiff_deflate"}),
    (".tif", "RGB", {"format": "TIFF", "compression": "jpeg"}),
    (".gif", "P", {"format": "GIF"}),
    (".bmp", "RGB", {"format": "BMP"}),
    (".ppm", "RGB", {"format": "PPM"}),
)


def _encode(image: Image.Image, options: dict[str, object]) -> bytes:
    out = io.BytesIO()
    image.save(out, **options)  # type: ignore[arg-type]
    return out.getvalue()


# -- crafted -------------------------------------------------------------------------------------------------


def _crafted(picture: Path) -> list[tuple[str, Callable[[Path], None]]]:
    """(suffix, what writes the file), each named for what it does."""
    good = Image.open(picture).convert("RGB")

    def png_huge(file: Path) -> None:
        file.write_bytes(png(60_000, 60_000, zlib.compress(b"\0" * 1000)))

    def png_largest(file: Path) -> None:
        file.write_bytes(png(2**31 - 1, 2**31 - 1, b""))

    def png_of_no_size(file: Path) -> None:
        file.write_bytes(png(0, 10, b""))

    def png_cut(file: Path) -> None:
        file.write_bytes(png(2000, 2000, zlib.compress(b"\0" * 1000)))

    def png_pixel_bomb(file: Path) -> None:
        file.write_bytes(png(10, 10, _bomb()))

    def png_profile_bomb(file: Path) -> None:
        file.write_bytes(png(10, 10, _flat(10), before=chunk(b"iCCP", b"x\0\0" + _bomb())))

    def png_text_bomb(file: Path) -> None:
        file.write_bytes(png(10, 10, _flat(10), before=chunk(b"zTXt", b"x\0\0" + _bomb())))

    def png_text_bomb_behind(file: Path) -> None:
        file.write_bytes(png(10, 10, _flat(10), after=chunk(b"zTXt", b"x\0\0" + _bomb())))

    def png_international_bomb(file: Path) -> None:
        text = b"x\0\1\0\0\0" + _bomb()
        file.write_bytes(png(10, 10, _flat(10), before=chunk(b"iTXt", text)))

    def png_many_chunks(file: Path) -> None:
        file.write_bytes(png(10, 10, _flat(10), before=chunk(b"tEXt", b"a\0b") * 100_000))

    def png_named_jpg(file: Path) -> None:
        good.save(file, "PNG")

    def jpeg_huge(file: Path) -> None:
        file.write_bytes(_resized_jpeg(_encode(good, {"format": "JPEG"}), 65_500, 65_500))

    def jpeg_taller(file: Path) -> None:
        file.write_bytes(_resized_jpeg(_encode(good, {"format": "JPEG"}), 1900, 1900))

    def jpeg_of_no_size(file: Path) -> None:
        file.write_bytes(_resized_jpeg(_encode(good, {"format": "JPEG"}), 0, 0))

    def jpeg_scans(file: Path) -> None:
        """Every scan goes over four million pixels, and takes a few bytes."""
        whole = _encode(Image.new("RGB", (2000, 2000)), {"format": "JPEG", "progressive": True})
        last = whole.rindex(b"\xff\xda")
        file.write_bytes(whole[:last] + whole[last:-2] * 3000 + b"\xff\xd9")

    def jpeg_segments(file: Path) -> None:
        file.write_bytes(b"\xff\xd8" + b"\xff\xe0\0\2" * 2_000_000 + b"\xff\xd9")

    def jpeg_orientation(file: Path) -> None:
        good.save(file, "JPEG", exif=_exif(struct.pack("<HHII", 0x0112, 3, 1, 77)))

    def jpeg_exif_loop(file: Path) -> None:
        good.save(file, "JPEG", exif=_exif(struct.pack("<HHII", 0x8769, 4, 1, 8), following=8))

    def jpeg_exif_far(file: Path) -> None:
        good.save(file, "JPEG", exif=_exif(struct.pack("<HHII", 0x0112, 4, 2**31, 2**32 - 1)))

    def tiff_loop(file: Path) -> None:
        file.write_bytes(b"II*\0\x08\0\0\0\0\0\x08\0\0\0")

    def tiff_huge(file: Path) -> None:
        file.write_bytes(_tiff(width=2**30, height=2**30))

    def tiff_strips(file: Path) -> None:
        file.write_bytes(_tiff(width=2000, height=2000, strip=(2**31, 2**32 - 1)))

    def tiff_samples(file: Path) -> None:
        file.write_bytes(_tiff(width=1000, height=1000, samples=65_535))

    def tiff_deflate_bomb(file: Path) -> None:
        file.write_bytes(_tiff(width=10, height=10, compression=8, data=_bomb()))

    def gif_screen(file: Path) -> None:
        data = bytearray(_encode(good.convert("P"), {"format": "GIF"}))
        data[6:10] = b"\xff\xff\xff\xff"
        file.write_bytes(data)

    def webp_canvas(file: Path) -> None:
        canvas = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + b"\xff\x3f\0\xff\x3f\0"
        file.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas)

    def ppm_digits(file: Path) -> None:
        file.write_bytes(b"P6 " + b"9" * 5000 + b" 1 255\n")

    def ppm_comment(file: Path) -> None:
        file.write_bytes(b"P6 #" + b"x" * 5_000_000)

    def bmp_huge(file: Path) -> None:
        file.write_bytes(
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 2**30, 2**30, 1, 24, *[0] * 6)
        )

    def text(file: Path) -> None:
        file.write_text("this is not a picture\n" * 50)

    def postscript(file: Path) -> None:
        file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(id) system\n")

    def vector(file: Path) -> None:
        file.write_text('<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>')

    def empty(file: Path) -> None:
        file.touch()

    def pipe(file: Path) -> None:
        os.mkfifo(file)

    def unix_socket(file: Path) -> None:
        os.mknod(file, stat.S_IFSOCK | 0o600)

    def no_target(file: Path) -> None:
        file.symlink_to("nowhere.jpg")

    def itself(file: Path) -> None:
        file.symlink_to(file.name)

    def endless(file: Path) -> None:
        file.symlink_to("/dev/zero")

    def folder_loop(file: Path) -> None:
        """A folder named like a picture, with a link to the folder that it is in."""
        file.mkdir()
        (file / "up").symlink_to(file.parent)
        (file / "inside.jpg").write_text("no picture")

    pngs = [png_huge, png_largest, png_of_no_size, png_cut, png_pixel_bomb, png_profile_bomb, png_text_bomb]
    pngs += [png_text_bomb_behind, png_international_bomb, png_many_chunks]
    jpeg = [png_named_jpg, jpeg_huge, jpeg_taller, jpeg_of_no_size, jpeg_scans, jpeg_segments]
    jpeg += [jpeg_orientation, jpeg_exif_loop, jpeg_exif_far]
    tiff = [tiff_loop, tiff_huge, tiff_strips, tiff_samples, tiff_deflate_bomb]
    other = [text, postscript, vector, empty, pipe, unix_socket, no_target, itself, endless, folder_loop]
    return [
        *((".jpg", make) for make in [*jpeg, *other]),
        *((".png", make) for make in pngs),
        *((".tif", make) for make in tiff),
        (".gif", gif_screen),
        (".webp", webp_canvas),
        *((".ppm", make) for make in (ppm_digits, ppm_comment)),
        (".bmp", bmp_huge),
    ]


@cache
def _bomb() -> bytes:
    deflate = zlib.compressobj(9)
    return b"".join([deflate.compress(b"\0" * (1 << 20)) for _ in range(BOMB >> 20)]) + deflate.flush()


def _flat(side: int) -> bytes:
    """The pixels of a black side×side RGB PNG."""
    return zlib.compress(b"\0" * (side * 3 + 1) * side)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def _resized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """Another size in the header of a baseline JPEG."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _exif(entry: bytes, following: int = 0) -> bytes:
    """An EXIF block of one entry, and where the next directory is said to be."""
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + struct.pack("<I", following)


def _tiff(
    width: int,
    height: int,
    samples: int = 3,
    compression: int = 1,
    strip: tuple[int, int] | None = None,
    data: bytes = b"\0" * 300,
) -> bytes:
    """A little-endian TIFF of one strip; `strip`: (offset, bytes) as said, else as they are."""
    offset, size = strip or (8, len(data))
    entries = [
        *[(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 2)],
        *[(273, 4, offset), (277, 3, samples), (278, 4, height), (279, 4, size)],
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"\0" * 4
