"""Pixels are those that Pillow gives, whatever the format; sizes and layouts are those asked for."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps

from image_subjects import HEIGHT, WIDTH, encoded, every_kind, oriented, picture
from penstock import BadMedia, ConfigError, DecodeImage, ObjectMissing, ResizeImage, image_size

KINDS = every_kind()


def by_pillow(data: bytes, mode: str = "RGB") -> np.ndarray:
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode))
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def decode(data, **options) -> np.ndarray:
    return DecodeImage(**options)({"image": data})["image"]


def furthest(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_every_kind_of_file_are_those_of_pillow(kind):
    pixels = decode(KINDS[kind])
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert furthest(pixels, by_pillow(KINDS[kind])) <= (1 if "cmyk" in kind else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_known_from_the_header(kind, tmp_path):
    image = Image.open(io.BytesIO(KINDS[kind]))
    (tmp_path / "file").write_bytes(KINDS[kind])
    assert image_size(KINDS[kind]) == image_size(tmp_path / "file") == (image.height, image.width)


@pytest.mark.parametrize("kind", KINDS)
def test_grey_is_that_of_pillow_within_1(kind):
    assert furthest(decode(KINDS[kind], mode="L"), by_pillow(KINDS[kind], "L")) <= (2 if "cmyk" in kind else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_is_kept_if_asked_for(kind):
    assert furthest(decode(KINDS[kind], mode="RGBA"), by_pillow(KINDS[kind], "RGBA")) <= (1 if "cmyk" in kind else 0)


@pytest.mark.parametrize("kind", ["png with alpha", "palette png with a transparent colour", "jpeg"])
def test_a_background_is_laid_behind_what_is_transparent(kind):
    image = Image.open(io.BytesIO(KINDS[kind])).convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", image.size, (255, 128, 0, 255)), image).convert("RGB")
    assert furthest(decode(KINDS[kind], background=(255, 128, 0)), np.asarray(expected)) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(kind, orientation):
    data = encoded(picture(), kind, exif=oriented(orientation))
    turned = decode(data)
    assert turned.shape[:2] == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))
    assert furthest(turned, by_pillow(data)) == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_image_is_not_turned_if_asked_not_to(mode):
    data = encoded(picture(), "PNG", exif=oriented(6))
    assert furthest(decode(data, orient=False, mode=mode)[:, :, :3], picture()) == 0


def test_of_16_bits_the_upper_8_are_taken_or_all():
    deep = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 8
    data = encoded(deep, "PNG")
    grey = (deep >> 8).astype(np.uint8)[:, :, None]
    assert furthest(decode(data), np.repeat(grey, 3, 2)) == 0
    assert furthest(decode(data, mode="L"), grey) == 0
    assert furthest(decode(data, mode="RGBA")[:, :, :3], np.repeat(grey, 3, 2)) == 0
    assert furthest(decode(data, dtype="uint16", mode="L"), deep[:, :, None]) == 0
    shallow = decode(KINDS["png"], dtype="uint16")
    assert shallow.dtype == np.uint16
    assert furthest(shallow, picture().astype(np.uint16) * 257) == 0


def test_a_path_and_bytes_of_any_kind_are_the_same(tmp_path):
    data = KINDS["jpeg"]
    (tmp_path / "really-a-jpeg.png").write_bytes(data)
    values = [
        tmp_path / "really-a-jpeg.png",
        str(tmp_path / "really-a-jpeg.png"),
        bytearray(data),
        memoryview(data),
        np.frombuffer(data, np.uint8),
    ]
    for value in values:
        assert furthest(decode(value), decode(data)) == 0


def test_layout_and_type():
    pixels = decode(KINDS["png"])
    planes = decode(KINDS["png"], layout="chw", dtype="float32")
    assert planes.dtype == np.float32
    assert planes.flags.c_contiguous
    np.testing.assert_allclose(planes, pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    deep = decode(encoded(np.full((4, 4), 65535, np.uint16), "PNG"), dtype="float32")
    assert deep.max() == 1


@pytest.mark.parametrize(
    ("fit", "size", "shape"),
    [
        ("stretch", (30, 40), (30, 40)),
        ("stretch", 32, (32, 32)),
        ("cover", 32, (32, 32)),
        ("cover", (20, 60), (20, 60)),
        ("contain", 64, (64, 64)),
        ("shorter", 30, (30, 40)),
        ("longer", 40, (30, 40)),
        ("cover", (150, 200), (150, 200)),
    ],
)
@pytest.mark.parametrize("method", ["area", "linear", "cubic", "nearest", "antialias"])
def test_sizes_are_those_asked_for(fit, size, shape, method):
    for mode in ("RGB", "L", "RGBA"):
        pixels = decode(KINDS["png"], size=size, fit=fit, method=method, mode=mode)
        assert pixels.shape[:2] == shape
    apart = ResizeImage(size, fit=fit, method=method)({"image": decode(KINDS["png"])})["image"]
    assert furthest(apart, decode(KINDS["png"], size=size, fit=fit, method=method)) == 0


def test_antialias_is_pillows_own_filter():
    reference = Image.open(io.BytesIO(KINDS["jpeg"]))
    stretched = reference.resize((40, 30), Image.Resampling.BILINEAR)
    assert furthest(decode(KINDS["jpeg"], size=(30, 40), fit="stretch", method="antialias"), np.asarray(stretched)) == 0
    cut = ImageOps.fit(reference, (30, 30), Image.Resampling.BILINEAR)
    # The box there begins at half a pixel, here at a whole one.
    assert np.abs(decode(KINDS["jpeg"], size=30, method="antialias").astype(int) - np.asarray(cut)).mean() < 2


def test_area_is_an_average_and_linear_aliases():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255
    average = ResizeImage(16)({"image": stripes})["image"]
    assert set(np.unique(average)) == {64}
    taken = ResizeImage(16, method="linear")({"image": stripes})["image"]
    assert set(np.unique(taken)) == {0}


def test_what_is_contained_is_in_the_middle_of_the_colour():
    pixels = ResizeImage(40, fit="contain", fill=(1, 2, 3))({"image": np.full((20, 40, 3), 9, np.uint8)})["image"]
    assert (pixels[10:30] == 9).all()
    assert (pixels[:10] == (1, 2, 3)).all()
    assert (pixels[30:] == (1, 2, 3)).all()


def test_none_stays_none_unless_it_is_required():
    assert DecodeImage(out="pixels")({"image": None, "id": 1}) == {"image": None, "pixels": None, "id": 1}
    with pytest.raises(BadMedia, match="nothing in its field 'image'") as caught:
        DecodeImage(required=True)({"image": None})
    assert caught.value.reason == "missing"


def test_what_cannot_work_is_said():
    with pytest.raises(ConfigError, match=r"no field 'image', it has \['jpg'\]"):
        DecodeImage()({"jpg": b""})
    with pytest.raises(ConfigError, match="was it decoded before"):
        DecodeImage()({"image": 5})
    with pytest.raises(ConfigError, match="is DecodeImage missing"):
        ResizeImage(4)({"image": b"..."})
    with pytest.raises(ObjectMissing, match="there is no file /nowhere"):
        DecodeImage()({"image": "/nowhere"})
    for options in (
        {"size": 0},
        {"size": (1, 2, 3)},
        {"size": (3, 4), "fit": "shorter"},
        {"fit": "fill"},
        {"mode": "HSV"},
        {"dtype": "uint16", "method": "antialias"},
        {"mode": "RGBA", "background": (0, 0, 0)},
        {"max_pixels": 0},
    ):
        with pytest.raises(ConfigError):
            DecodeImage(**options)


def test_a_transform_pickles_and_leaves_its_sample_alone():
    transform = pickle.loads(pickle.dumps(DecodeImage("a", "b", size=8)))
    sample = {"a": KINDS["png"]}
    assert transform(sample)["b"].shape == (8, 8, 3)
    assert sample == {"a": KINDS["png"]}
