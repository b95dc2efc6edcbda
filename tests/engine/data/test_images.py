"""Reading pictures: every kind of file gives the right pixels or one line that says why not."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from infercam.engine.common.errors import InputError
from infercam.engine.data.images import DEFAULT_MAX_PIXELS, SUFFIXES, image_size, read_image, without_suffix
from tests.shared import SHARED


def photo(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """A smooth picture with every channel different and no symmetry."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray | Image.Image, fmt: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, fmt, **options)
    return out.getvalue()


def bomb_png(width: int, height: int) -> bytes:
    """A valid 1-bit PNG of any size, made row by row from zeros: small on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture
def write(tmp_path: Path):
    def _write(data: bytes, name: str = "picture.bin") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return _write


def refusal(path: Path, **options: int) -> str:
    """The message of the InputError: one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- formats and modes


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_round_trip(write, fmt: str) -> None:
    pixels = photo()
    path = write(encoded(pixels, fmt, **({"lossless": True} if fmt == "WEBP" else {})))
    got = read_image(path)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous and got.flags.writeable
    np.testing.assert_array_equal(got, pixels)
    assert image_size(path) == (40, 60)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("shape", [(40, 60), (33, 47), (1, 1), (7, 1)])
def test_jpeg_pixels_are_pillows(write, options: dict, shape: tuple[int, int]) -> None:
    path = write(encoded(photo(*shape), "JPEG", **options))
    np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path).convert("RGB")))


def test_grey_jpeg_has_three_equal_channels(write) -> None:
    path = write(encoded(photo()[:, :, 0], "JPEG"))
    got = read_image(path)
    np.testing.assert_array_equal(got, np.asarray(Image.open(path).convert("RGB")))
    assert (got[:, :, 0] == got[:, :, 2]).all()


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "JPEG", "PPM", "GIF", "WEBP"])
def test_one_pixel(write, fmt: str) -> None:
    path = write(encoded(np.full((1, 1, 3), 255, np.uint8), fmt))
    np.testing.assert_array_equal(read_image(path), np.full((1, 1, 3), 255, np.uint8))
    assert image_size(path) == (1, 1)


def test_cmyk_tiff_follows_the_plain_formula(write) -> None:
    inks = np.zeros((1, 3, 4), np.uint8)
    inks[0, 1] = (255, 0, 0, 0)  # all cyan: no red
    inks[0, 2] = (0, 0, 0, 255)  # black
    got = read_image(write(encoded(Image.fromarray(inks, "CMYK"), "TIFF")))
    np.testing.assert_array_equal(got[0], [(255, 255, 255), (0, 255, 255), (0, 0, 0)])


def test_adobe_cmyk_jpeg_is_not_a_negative(write) -> None:
    """Adobe stores CMYK inverted in JPEG; so does Pillow when it writes one."""
    rgb = photo()
    cmyk = Image.fromarray(rgb).convert("CMYK")
    data = encoded(cmyk, "JPEG", quality=95, subsampling=0)
    assert b"Adobe" in data
    got = read_image(write(data)).astype(int)
    assert np.abs(got - rgb).mean() < 4


def test_palette(write) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    got = read_image(write(encoded(image, "PNG")))
    np.testing.assert_array_equal(got[0], [(10, 20, 30), (40, 50, 60), (70, 80, 90)])


def test_transparent_palette_entry_is_white(write) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    for options in ({"transparency": 0}, {"transparency": bytes([0, 255])}):
        got = read_image(write(encoded(image, "PNG", **options)))
        np.testing.assert_array_equal(got[0], [(255, 255, 255), (40, 50, 60)])


def test_alpha_is_laid_over_white(write) -> None:
    pixels = np.array([[(100, 50, 0, 255), (100, 50, 0, 0), (0, 0, 0, 128)]], np.uint8)
    got = read_image(write(encoded(pixels, "PNG")))
    np.testing.assert_array_equal(got[0, :2], [(100, 50, 0), (255, 255, 255)])
    assert np.abs(got[0, 2].astype(int) - 127).max() <= 1


def test_opaque_alpha_changes_nothing(write) -> None:
    pixels = np.dstack([photo(), np.full((40, 60), 255, np.uint8)])
    np.testing.assert_array_equal(read_image(write(encoded(pixels, "PNG"))), photo())


def test_transparent_colour_of_an_rgb_png(write) -> None:
    pixels = np.array([[(1, 2, 3), (4, 5, 6)]], np.uint8)
    got = read_image(write(encoded(pixels, "PNG", transparency=(1, 2, 3))))
    np.testing.assert_array_equal(got[0], [(255, 255, 255), (4, 5, 6)])


def test_one_bit(write) -> None:
    bits = np.array([[True, False, True]])
    for fmt in ("PNG", "TIFF", "PPM"):
        got = read_image(write(encoded(Image.fromarray(bits), fmt)))
        np.testing.assert_array_equal(got[0, :, 0], [255, 0, 255])


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(write, fmt: str) -> None:
    eight = np.arange(256, dtype=np.uint16)[None, :]
    for wide in (eight * 257, eight * 256):
        got = read_image(write(encoded(wide, fmt)))
        assert got.shape == (1, 256, 3)
        np.testing.assert_array_equal(got[0, :, 1], eight[0])


def test_16_bit_colour_png(write) -> None:
    wide = photo().astype(np.uint16) * 257
    ok, data = cv2.imencode(".png", wide[:, :, ::-1])
    assert ok
    np.testing.assert_array_equal(read_image(write(data.tobytes())), photo())


def test_12_bit_tiff_keeps_its_high_8_bits(write) -> None:
    """Two samples of 12 bits, packed: 0xABC and 0x123."""
    strip = bytes([0xAB, 0xC1, 0x23])
    tags = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 0)]
    tags += [(277, 3, 1), (278, 3, 1), (279, 4, len(strip))]
    offset = 8 + 2 + 12 * len(tags) + 4
    body = b"".join(
        struct.pack("<HHII", tag, kind, 1, offset if tag == 273 else value) for tag, kind, value in tags
    )
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4) + strip
    np.testing.assert_array_equal(read_image(write(data))[0, :, 0], [0xAB, 0x12])


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_12_bits_in_a_16_bit_grey_file(write, fmt: str) -> None:
    """Scaled by what they hold: 4095 is white; one sample more and it is a dark picture of 16 bits."""
    twelve = np.linspace(0, 4095, 97, dtype=np.uint16)[None, :]
    np.testing.assert_array_equal(read_image(write(encoded(twelve, fmt)))[0, :, 1], twelve[0] >> 4)
    twelve[0, -1] = 4096
    np.testing.assert_array_equal(read_image(write(encoded(twelve, fmt)))[0, :, 1], twelve[0] >> 8)


def test_a_ppm_states_its_largest_value(write) -> None:
    grey = np.array([[0, 100, 200]], ">u2")
    for largest, scale in ((4095, 255 / 4095), (65535, 255 / 65535)):
        data = b"P5 3 1 %d\n" % largest + grey.tobytes()
        expected = (grey[0] * scale).astype(np.uint8)
        np.testing.assert_allclose(read_image(write(data))[0, :, 1], expected, atol=1)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_12_bits_in_a_16_bit_colour_file(write, suffix: str) -> None:
    twelve = photo().astype(np.uint16) * 16 + 7
    ok, data = cv2.imencode(suffix, twelve[:, :, ::-1])
    assert ok
    np.testing.assert_array_equal(read_image(write(data.tobytes())), photo())


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_turned_tiff_of_12_bits_is_turned(write, orientation: int) -> None:
    twelve = photo().astype("<u2") * 16
    height, width, _ = twelve.shape
    tags = [(256, width), (257, height), (258, 0), (259, 1), (262, 2), (273, 0), (274, orientation)]
    tags += [(277, 3), (278, height), (279, twelve.nbytes), (284, 1)]
    behind = 8 + 2 + 12 * len(tags) + 4
    values = {258: behind, 273: behind + 6}
    body = b"".join(
        struct.pack(
            "<HHII", tag, 3 if tag in (258, 274) else 4, 3 if tag == 258 else 1, values.get(tag, value)
        )
        for tag, value in tags
    )
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4) + struct.pack("<HHH", 16, 16, 16)
    expected = {1: photo(), 3: photo()[::-1, ::-1], 6: photo().swapaxes(0, 1)[:, ::-1]}[orientation]
    np.testing.assert_array_equal(read_image(write(data + twelve.tobytes())), expected)


def test_a_dark_picture_of_8_bits_stays_dark(write) -> None:
    dark = photo() // 32
    for fmt in ("PNG", "TIFF"):
        np.testing.assert_array_equal(read_image(write(encoded(dark, fmt))), dark)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_samples_are_refused_with_advice(write, dtype: type) -> None:
    message = refusal(write(encoded(Image.fromarray(np.ones((3, 4), dtype)), "TIFF")))
    assert "convert it to 8 or 16 bits" in message


def test_first_frame_of_an_animation(write) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    for fmt, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(write(data))[0, 0], (255, 0, 0))


def test_the_content_decides_not_the_suffix(write) -> None:
    path = write(encoded(photo(), "PNG"), "really_a_png.jpg")
    np.testing.assert_array_equal(read_image(path), photo())


# --- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied(write, fmt: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(encoded(photo(), fmt, exif=exif))
    from PIL import ImageOps

    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        stored = np.asarray(image.convert("RGB"))
    got = read_image(path)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, upright)
    assert image_size(path) == upright.shape[:2]
    np.testing.assert_array_equal(read_image(path, exif=False), stored)
    assert image_size(path, exif=False) == (40, 60)


def test_orientation_of_tiff_is_applied_once(write) -> None:
    path = write(encoded(photo(), "TIFF", tiffinfo={0x0112: 6}))
    np.testing.assert_array_equal(read_image(path), np.rot90(photo(), -1))
    assert image_size(path) == (60, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_orientation_tag_is_no_reason_to_refuse(write) -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(write(data)).shape == (40, 60, 3)


# --- size limit


def test_a_bomb_is_refused_by_its_header(write) -> None:
    data = bomb_png(20_000, 20_000)
    assert len(data) < 200_000
    path = write(data, "huge.png")
    message = refusal(path)
    assert message == (
        f"{path}: 20000×20000 = 400 MP is over the limit of 4 MP; shrink it or raise --max-pixels"
    )
    assert image_size(path) == (20_000, 20_000)


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "JPEG", "PPM", "GIF", "WEBP"])
def test_the_limit_holds_for_every_format(write, fmt: str) -> None:
    path = write(encoded(photo(10, 20), fmt))
    assert read_image(path, max_pixels=200).shape == (10, 20, 3)
    assert "20×10 = 0.0002 MP is over the limit of 0.000199 MP" in refusal(path, max_pixels=199)


def test_the_header_alone_is_read_for_the_size(write) -> None:
    """Only a header, no picture: the size is still known, the pixels are not."""
    whole = encoded(photo(300, 400), "PNG")
    path = write(whole[: whole.index(b"IDAT") + 4])
    assert image_size(path) == (300, 400)
    refusal(path)


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_webp_size_is_checked_before_its_decoder_is_made(write, options: dict, monkeypatch) -> None:
    from PIL import WebPImagePlugin

    path = write(encoded(photo(30, 50), "WEBP", **options))

    def never(*_: object) -> None:
        raise AssertionError("decoder made")

    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_open", never)
    assert "50×30" in refusal(path, max_pixels=10)


def test_pillows_own_limits_are_left_alone(write) -> None:
    before = Image.MAX_IMAGE_PIXELS
    path = write(bomb_png(9_500, 9_500))  # above the size at which Pillow warns
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(path) == (9_500, 9_500)
        refusal(path)
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_default_limit_is_four_megapixels() -> None:
    assert DEFAULT_MAX_PIXELS == 4_000_000


# --- damage


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "JPEG", "PPM", "GIF", "WEBP"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.95])
def test_truncated_files_are_refused(write, fmt: str, keep: float) -> None:
    rng = np.random.default_rng(0)
    data = encoded(rng.integers(0, 256, (64, 64, 3), np.uint8), fmt)
    refusal(write(data[: int(len(data) * keep)]))


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_cut_anywhere_is_refused(write, progressive: bool) -> None:
    """The thumbnail inside the header has an end marker of its own, which must not count."""
    exif = Image.Exif()
    data = encoded(photo(), "JPEG", exif=exif, progressive=progressive, comment=b"\xff\xd8\xff\xd9")
    assert read_image(write(data)).shape == (40, 60, 3)
    for cut in range(1, len(data) - 1, 7):
        refusal(write(data[:-cut]))
    assert "truncated" in refusal(write(data[:-2]))


def test_a_cut_jpeg_is_refused_even_where_the_process_told_pillow_otherwise(write, monkeypatch) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(photo(), "JPEG")
    assert "truncated" in refusal(write(data[: len(data) * 2 // 3]))


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm(write) -> None:
    data = encoded(photo(), "JPEG")
    np.testing.assert_array_equal(read_image(write(data + b"trailer\xff" * 9)), read_image(write(data)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just some text, renamed\n", "not a picture"),
        (b"<html><body>404</body></html>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "HEIC"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (b"BM", "decoded"),
    ],
)
def test_what_is_no_picture(write, data: bytes, reason: str) -> None:
    assert reason in refusal(write(data, "x.jpg"))


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a regular file" in refusal(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    refusal(tmp_path / "loop.jpg")


def test_a_name_with_control_characters_stays_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "a\nb\udcff.jpg")
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    with pytest.raises(InputError):
        read_image("nul\0byte.jpg")


_SAMPLES = [encoded(photo(12, 9), fmt) for fmt in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP")]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_a_picture_or_an_input_error(tmp_path: Path, data: st.DataObject) -> None:
    """Flipped, cut and pasted bytes: never another exception, never a picture over the limit."""
    raw = bytearray(data.draw(st.sampled_from(_SAMPLES)))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path / "fuzzed"
    path.write_bytes(bytes(raw))
    try:
        got = read_image(path, max_pixels=10_000)
    except InputError as e:
        assert "\n" not in str(e)
    else:
        assert got.dtype == np.uint8 and got.ndim == 3 and got.shape[2] == 3
        assert got.shape[0] * got.shape[1] <= 10_000
        assert image_size(path) == got.shape[:2]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from([s[:14] for s in _SAMPLES] + [b""]), rest=st.binary(max_size=200))
@pytest.mark.filterwarnings("ignore")
def test_random_bytes_behind_a_magic_number(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "fuzzed"
    path.write_bytes(start + rest)
    try:
        read_image(path, max_pixels=10_000)
    except InputError as e:
        assert "\n" not in str(e)


def test_threads(write) -> None:
    paths = [write(data, f"{i}") for i, data in enumerate(_SAMPLES)]
    expected = [read_image(p) for p in paths]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(20):
            for i, path in enumerate(paths):
                if not np.array_equal(read_image(path), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_without_suffix() -> None:
    assert without_suffix("a/b.JPG") == "a/b"
    assert without_suffix("a.b/c") == "a.b/c"
    assert without_suffix("v1.5") == "v1.5"
    assert ".jpg" in SUFFIXES


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_voc_photos_have_pillows_pixels() -> None:
    """The fast path gives what the field's tools (PIL, no orientation) read, on real photos."""
    photos = sorted((SHARED / "voc/VOC2012/JPEGImages").glob("*.jpg"))[::4]
    assert photos
    for path in photos:
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))
            assert image_size(path) == image.size[::-1]
