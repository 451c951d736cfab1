"""Images for tests, made on the spot: one picture in every format and colour model."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 75, 100


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """A smooth picture with edges, no side like another: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], axis=-1)
    ground[height // 4 : height // 2, width // 8 : width // 2] = np.random.default_rng(seed).integers(0, 256, 3)
    return ground.astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    whole = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    whole.save(file, kind, **options)
    return file.getvalue()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def every_kind() -> dict[str, bytes]:
    """Name → a file's bytes, each of which Pillow reads."""
    rgb = Image.fromarray(picture())
    alpha = Image.fromarray(np.dstack([picture(), picture()[:, :, 0]]))
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    return {
        "jpeg": encoded(rgb, "JPEG"),
        "progressive jpeg": encoded(rgb, "JPEG", progressive=True),
        "jpeg without subsampling": encoded(rgb, "JPEG", subsampling=0, quality=98),
        "grey jpeg": encoded(rgb.convert("L"), "JPEG"),
        "cmyk jpeg": encoded(rgb.convert("CMYK"), "JPEG"),
        "png": encoded(rgb, "PNG"),
        "png with alpha": encoded(alpha, "PNG"),
        "palette png": encoded(rgb.convert("P"), "PNG"),
        "palette png with a transparent colour": encoded(rgb.convert("P"), "PNG", transparency=3),
        "grey png with alpha": encoded(rgb.convert("LA"), "PNG"),
        "png of one bit": encoded(rgb.convert("1"), "PNG"),
        "gif": encoded(rgb, "GIF"),
        "animated gif": encoded(rgb, "GIF", **frames),
        "webp": encoded(rgb, "WEBP"),
        "lossless webp": encoded(rgb, "WEBP", lossless=True),
        "animated webp": encoded(rgb, "WEBP", lossless=True, **frames),
        "bmp": encoded(rgb, "BMP"),
        "tiff": encoded(rgb, "TIFF"),
        "packed tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "cmyk tiff": encoded(rgb.convert("CMYK"), "TIFF"),
        "jpeg 2000": encoded(rgb, "JPEG2000"),
        "avif": encoded(rgb, "AVIF"),
        "ppm": encoded(rgb, "PPM"),
        "ico": encoded(rgb.resize((64, 64)), "ICO"),
        "tga": encoded(rgb, "TGA"),
    }


def png_that_says(width: int, height: int) -> bytes:
    """A valid PNG header of any size, and next to no pixels: a decompression bomb without its charge."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
        + chunk(b"IEND", b"")
    )


def jpeg_that_says(width: int, height: int) -> bytes:
    """A JPEG whose frame header says another size than it has."""
    data = bytearray(encoded(picture(), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)
