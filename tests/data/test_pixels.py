"""One encoded image → pixels: what is converted, and what is refused because it would lose something."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from cudd_core.data.pixels import Decoding, decode
from cudd_core.errors import DataError
from cudd_core.exchange import foreign

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def sixteen_bit_rgb(value: int) -> bytes:
    return png_of_sixteen_bits(2, np.full((8, 8, 3), value))


def png_of_sixteen_bits(kind: int, values: np.ndarray) -> bytes:
    """A PNG of 8 × 8 pixels of that kind (2: RGB, 4: grey and opacity), which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values))


def read(data: bytes, channels: int = 1, **how: object) -> torch.Tensor:
    return decode(data, "x.png", Decoding(channels, 8, **how))  # type: ignore[arg-type]


def test_grey_becomes_three_equal_channels_and_comes_back() -> None:
    three = read(grey(RAMP), 3, convert_grey=True)
    assert torch.equal(three, torch.from_numpy(RAMP).expand(3, 8, 8))
    back = read(encoded(Image.fromarray(three.permute(1, 2, 0).numpy())), 1, convert_colour=True)
    assert torch.equal(back[0], torch.from_numpy(RAMP))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_colour_becomes_brightness_when_asked(mode: str) -> None:
    image = Image.new("RGB", (8, 8), (255, 0, 0)).convert(mode)
    data = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    with pytest.raises(DataError, match=rf"mode {mode}.*data\.colour=convert"):
        read(data)
    assert read(data, convert_colour=True).unique().tolist() == [76]


@pytest.mark.parametrize("more", [1, 2, 5])
def test_an_image_of_the_right_height_is_cropped_and_not_blurred(more: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8 + more), dtype=np.uint8)
    for image in (values, values.T):
        found = read(grey(image)).squeeze(0)
        crops = [
            torch.from_numpy(image[:8, n : n + 8] if image is values else image[n : n + 8]) for n in range(more + 1)
        ]
        assert [torch.equal(found, crop) for crop in crops] == [n == more // 2 for n in range(more + 1)]


def test_one_bit_is_black_and_white() -> None:
    assert read(encoded(Image.fromarray(RAMP > 100))).unique().tolist() == [0, 255]


def test_alpha_is_dropped() -> None:
    clear = np.stack([RAMP, np.zeros_like(RAMP)], axis=-1)
    assert torch.equal(read(encoded(Image.fromarray(clear, "LA")))[0], torch.from_numpy(RAMP))


# ---- 16 bits --------------------------------------------------------------------------------------------------------

DEEP = RAMP.astype(np.uint16) * 257
TWELVE = RAMP.astype(np.uint16) << 4


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(channels: int) -> None:
    for white in (0, 65535):
        pixels = read(grey(DEEP), channels, convert_grey=True, white=white)
        assert torch.equal(pixels, torch.from_numpy(RAMP).expand(channels, 8, 8))


def test_twelve_bits_in_sixteen_are_not_lost_silently() -> None:
    with pytest.raises(DataError, match=r"no value above 4032: 8 bits would keep 15 of it.*data\.white.*4095 for 12"):
        read(grey(TWELVE))
    expected = np.rint(TWELVE * (255 / 4095)).astype(np.uint8)
    assert torch.equal(read(grey(TWELVE), white=4095)[0], torch.from_numpy(expected))
    assert int(read(grey(TWELVE), white=65535).max()) == 15


def test_white_is_the_highest_value() -> None:
    with pytest.raises(DataError, match=r"value 64764, above data\.white = 4095"):
        read(grey(DEEP), white=4095)
    assert int(read(grey(np.full((8, 8), 4095, np.uint16)), white=4095).min()) == 255


def test_a_black_image_is_a_black_image() -> None:
    assert not read(grey(np.zeros((8, 8), np.uint16))).any()


def test_sixteen_bits_a_colour() -> None:
    assert read(sixteen_bit_rgb(0xA1B2), 3).unique().tolist() == [0xA1]
    for value, white in ((0x0FFF, 0), (0xA1B2, 4095)):
        with pytest.raises(DataError, match=r"16 bits a colour, of which the upper 8 are read"):
            read(sixteen_bit_rgb(value), 3, white=white)
    assert read(sixteen_bit_rgb(0x0FFF), 3, white=65535).unique().tolist() == [0x0F]


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_with_opacity_are_grey(channels: int) -> None:
    data = png_of_sixteen_bits(4, np.stack([DEEP, np.full_like(DEEP, 65535)], -1))
    pixels = read(data, channels, convert_grey=True)
    assert torch.equal(pixels, torch.from_numpy(RAMP).expand(channels, 8, 8))
    with pytest.raises(DataError, match="is greyscale"):
        read(data, 3)


def test_sixteen_bits_in_a_portable_map() -> None:
    def portable(kind: str, values: np.ndarray, white: int = 65535) -> bytes:
        return f"{kind} 8 8 {white}\n".encode() + values.astype(">u2").tobytes()

    assert torch.equal(read(portable("P5", DEEP))[0], torch.from_numpy(RAMP))
    with pytest.raises(DataError, match=r"no value above 4032.*data\.white"):
        read(portable("P5", TWELVE))
    assert int(read(portable("P5", TWELVE), white=4095).max()) == 251
    colour = np.repeat(TWELVE[:, :, None], 3, 2)
    with pytest.raises(DataError, match=r"16 bits a colour, of which the upper 8 are read \(at most 16 of 255"):
        read(portable("P6", colour), 3)
    assert int(read(portable("P6", colour, 4095), 3).max()) == 251


def test_no_image_at_all() -> None:
    with pytest.raises(DataError, match=r"cannot be read as an image \(no known image format\)"):
        read(b"plain text")


def test_nothing_is_given_to_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS is a program, which Pillow would have Ghostscript run."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("it ran"))
    data = encoded(Image.fromarray(RAMP), "EPS")
    with pytest.raises(DataError, match="no known image format"):
        read(data)
    with pytest.raises(DataError, match="no known image format"):
        foreign._look("a", data)


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"])
def test_formats_of_images(kind: str) -> None:
    assert read(encoded(Image.fromarray(RAMP).convert("RGB"), kind), 3).shape == (3, 8, 8)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_are_refused(kind: type) -> None:
    with pytest.raises(DataError, match=r"32 bits.*black and white are unknown"):
        read(encoded(Image.fromarray(RAMP.astype(kind)), "TIFF"))


# ---- several images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_several_images_in_one_file_are_refused(kind: str) -> None:
    frames = [Image.fromarray(RAMP).convert("RGB"), Image.fromarray(255 - RAMP).convert("RGB")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="holds 2 images"):
        read(data, 3)
    assert read(encoded(frames[0], kind), 3).shape == (3, 8, 8)


def test_a_phone_s_second_picture_is_passed_over() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert float(read(data, 3)[0].float().mean()) > 200


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Pillow's own limit: twice `MAX_IMAGE_PIXELS`, 179 million."""
    file = BytesIO()
    Image.new("L", (20, 20)).save(file, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)
    with pytest.raises(DataError, match=r"big\.png has too many pixels.*400 pixels.*Scale it down"):
        decode(file.getvalue(), "big.png", Decoding(1, 8))
