"""What is cut, mirrored and normalised; what is random is a function of its generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_subjects import encoded, picture
from penstock import (
    BadMedia,
    ChannelsFirst,
    ConfigError,
    CropImage,
    FitBucket,
    FlipImage,
    NormalizeImage,
    RandomResizedCrop,
    ResizeImage,
    aspect_buckets,
    image_pipeline,
    nearest_bucket,
    rng,
)
from penstock.transforms.chain import Chain

# Each pixel says where it was.
PLACES = np.dstack([*np.mgrid[:60, :80], np.zeros((60, 80))]).astype(np.uint8)


def test_the_middle_is_cut_out():
    part = CropImage((20, 30))({"image": PLACES})["image"]
    assert part.shape == (20, 30, 3)
    assert part[0, 0].tolist() == [20, 25, 0]
    with pytest.raises(BadMedia, match="80 × 60 has no part of 90 × 10") as caught:
        CropImage((10, 90))({"image": PLACES})
    assert caught.value.reason == "too-small"


def test_a_random_part_is_anywhere_and_whole():
    crop = CropImage(50, random=True)
    corners = {tuple(crop({"image": PLACES}, rng(0, "x", k))["image"][0, 0].tolist()) for k in range(2000)}
    assert len({corner[0] for corner in corners}) == 11
    assert len({corner[1] for corner in corners}) == 31
    with pytest.raises(ConfigError, match="draws from rng"):
        crop({"image": PLACES})


def test_parts_have_the_areas_and_shapes_asked_for():
    crop = RandomResizedCrop(8, scale=(0.25, 0.5), ratio=(0.5, 2))
    boxes = [crop._box(600, 800, rng(0, "x", k)) for k in range(500)]
    areas = np.array([box.height * box.width for box in boxes]) / (600 * 800)
    ratios = np.array([box.width / box.height for box in boxes])
    assert 0.248 < areas.min() < 0.26
    assert 0.49 < areas.max() < 0.502
    assert 0.495 < ratios.min() < 0.55
    assert 1.8 < ratios.max() < 2.02
    assert all(box.top + box.height <= 600 and box.left + box.width <= 800 for box in boxes)
    # A strip has no part of such a shape: its middle is taken.
    assert crop._box(10, 4000, rng(0, "x")) == (0, 1990, 10, 20)


def test_a_mirror_mirrors_half_of_the_time():
    flips = [FlipImage()({"image": PLACES}, rng(0, "x", k))["image"][0, 0, 1] for k in range(1000)]
    assert set(flips) == {0, 79}
    assert 430 < flips.count(79) < 570
    assert FlipImage(p=1, axis="vertical")({"image": PLACES}, rng(0, "x"))["image"][0, 0, 0] == 59
    assert FlipImage(p=0)({"image": PLACES}, rng(0, "x"))["image"] is PLACES


@pytest.mark.parametrize("layout", ["chw", "hwc"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_numbers_are_normalised_by_channel(layout, dtype):
    image = picture().astype(dtype)
    if dtype != np.uint8:
        image = image * np.array(257, dtype) if dtype == np.uint16 else image / np.float32(255)
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.5, 1.0)
    normalised = NormalizeImage(mean=mean, std=std, layout=layout)({"image": image})["image"]
    expected = (picture() / 255 - mean) / std
    np.testing.assert_allclose(normalised, expected.transpose(2, 0, 1) if layout == "chw" else expected, atol=1e-5)
    assert normalised.dtype == np.float32
    assert normalised.flags.c_contiguous


def test_arguments_that_cannot_work_are_refused():
    for make in (
        lambda: NormalizeImage(std=0),
        lambda: RandomResizedCrop(8, scale=(0.5, 0.2)),
        lambda: FlipImage(p=2),
        lambda: FitBucket([]),
        lambda: aspect_buckets(10, step=64),
        lambda: image_pipeline(augment=True),
        lambda: image_pipeline(224, buckets=[(64, 64)]),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError, match="for 3 channels"):
        NormalizeImage(mean=(1, 2), std=1)({"image": PLACES})


def test_buckets_are_of_one_area_and_images_go_to_the_nearest():
    buckets = aspect_buckets(512 * 512, step=64, max_ratio=2)
    assert all(height % 64 == 0 == width % 64 and height * width <= 512 * 512 for height, width in buckets)
    assert {(width, height) for height, width in buckets} == set(buckets)
    assert buckets[nearest_bucket(1000, 1000, buckets)] == (512, 512)
    assert buckets[nearest_bucket(10, 1000, buckets)] == buckets[0]
    sample = FitBucket(buckets)({"image": picture(300, 400)})
    assert sample["image"].shape[:2] == buckets[sample["bucket"]] == (448, 576)
    assert FitBucket(buckets)({"image": None}) == {"image": None, "bucket": None}


@pytest.mark.parametrize(
    "transform", [CropImage(4), FlipImage(), NormalizeImage(), RandomResizedCrop(4), ChannelsFirst(), ResizeImage(4)]
)
def test_none_passes(transform):
    assert Chain([transform])({"image": None, "id": 7}, epoch=0, id_=0) == [{"image": None, "id": 7}]


@pytest.mark.parametrize(
    ("options", "shape", "dtype"),
    [
        ({"size": 32}, (3, 32, 32), np.uint8),
        ({"size": (16, 32), "layout": "hwc"}, (16, 32, 3), np.uint8),
        ({"size": 32, "augment": True, "normalize": (0.5, 0.5)}, (3, 32, 32), np.float32),
        ({"size": 32, "mode": "L"}, (1, 32, 32), np.uint8),
        ({"buckets": [(64, 32), (32, 64)], "flip": 0.5}, (3, 32, 64), np.uint8),
        ({}, (3, 75, 100), np.uint8),
    ],
)
def test_the_preset_gives_what_it_says_and_depends_on_the_key_alone(options, shape, dtype):
    chain = Chain(image_pipeline(out="pixels", **options), seed=3)
    data = {"image": encoded(picture(), "JPEG")}
    made = [chain(data, epoch=epoch, id_=5)[0]["pixels"] for epoch in (0, 0, 1)]
    assert (made[0].shape, made[0].dtype) == (shape, dtype)
    assert torch.from_numpy(made[0]).is_contiguous()
    assert (made[0] == made[1]).all()
    if options.get("augment"):
        assert (made[0] != made[2]).any()
        assert -1 <= made[0].min() < made[0].max() <= 1
