"""Every preset from a store through a loader: shapes, types and ranges as documented, the same samples in any lane."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch

from image_subjects import encoded, picture
from penstock import (
    Collate,
    ConfigError,
    StreamingDataLoader,
    StreamingDataset,
    audio_latent_pipeline,
    audio_pipeline,
    image_latent_pipeline,
    image_pipeline,
    joint_video_audio_pipeline,
    metadata_pipeline,
    text_pipeline,
    text_to_video_pipeline,
    video_pipeline,
)

COUNT = 40
STEPS = [
    *image_pipeline(32, augment=True, field="jpg", out="image", normalize=(0.5, 0.5)),
    *image_latent_pipeline(scale=0.18),
    *text_pipeline("captions", drop=0.1, embedding_field="clip", embedding_length=6),
    *metadata_pipeline(
        json_field="json",
        pick={"label": "class.name"},
        classes={"label": ["cat", "dog"]},
        dtypes={"price": "float32"},
        fields=["__sample_key__", "image", "latent", "captions", "clip", "clip_mask", "label", "price"],
    ),
]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def samples(web) -> str:
    """Images, latents, embeddings and JSON on a web server, and the table that names them."""
    (web.folder / "files").mkdir()
    draw, rows = np.random.default_rng(0), []
    for k in range(COUNT):
        files = {
            "jpg": encoded(picture(60 + k, 90, seed=k), "JPEG"),
            "latent": npy(draw.standard_normal((8, 4, 4)).astype(np.float16) ** 2),
            "clip": npy(draw.standard_normal((2, 3 + k % 5, 16)).astype(np.float32)),
            "json": json.dumps({"class": {"name": ["cat", "dog"][k % 2]}}).encode(),
        }
        for name, data in files.items():
            (web.folder / f"files/{k}.{name}").write_bytes(data)
        rows.append({"index": str(k), **{name: f"files/{k}.{name}" for name in files}})
        rows[-1] |= {"captions": [f"caption {k}", f"another {k}"], "price": k / 4}
    (web.folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"{web.url}/index.jsonl"


def opened(samples: str, folder) -> StreamingDataset:
    columns = ["jpg", "latent", "clip", "json"]
    return StreamingDataset(samples, folder, columns_to_download=columns, transforms=STEPS, shuffle_seed=7)


def read(samples: str, folder, lane: str) -> dict[str, dict]:
    """Key → sample, as it comes out of a loader."""
    dataset = opened(samples, folder)
    found = {}
    options = {} if lane == "inline" else {"worker_type": lane}
    num_workers = 0 if lane == "inline" else 2
    with dataset, StreamingDataLoader(dataset, 8, num_workers=num_workers, collate_fn=Collate(), **options) as loader:
        for batch in loader:
            assert isinstance(batch["image"], torch.Tensor)
            for j, key in enumerate(batch["__sample_key__"]):
                found[key] = {name: values[j] for name, values in batch.items()}
    return found


def test_presets_give_what_they_say_and_the_same_in_every_lane(samples, tmp_path):
    lanes = {lane: read(samples, tmp_path / "stream", lane) for lane in ("thread", "process", "inline")}
    first = lanes["thread"]
    assert sorted(first, key=int) == [str(k) for k in range(COUNT)]
    for key, sample in first.items():
        assert (sample["image"].shape, sample["image"].dtype) == ((3, 32, 32), torch.float32)
        assert -1 <= sample["image"].min() <= sample["image"].max() <= 1
        assert (sample["latent"].shape, sample["latent"].dtype) == ((4, 4, 4), torch.float32)
        assert (sample["clip"].shape, sample["clip"].dtype) == ((6, 16), torch.float32)
        assert sample["clip_mask"].sum() == min(6, 3 + int(key) % 5)
        assert sample["captions"] in (f"caption {key}", f"another {key}", "")
        assert sample["label"] == int(key) % 2
        assert sample["price"] == int(key) / 4
    assert {sample["captions"].split(" ")[0] for sample in first.values()} == {"caption", "another", ""}
    for other in (lanes["process"], lanes["inline"]):
        assert other.keys() == first.keys()
        for key, sample in first.items():
            for name, value in sample.items():
                same = torch.equal(value, other[key][name]) if torch.is_tensor(value) else value == other[key][name]
                assert same, (key, name)


def test_a_sample_asked_for_by_hand_is_the_one_of_the_first_epoch(samples, tmp_path):
    batches = read(samples, tmp_path / "stream", "thread")
    with opened(samples, tmp_path / "stream") as alone:
        sample = alone[13]
        assert sample["captions"] == batches["13"]["captions"]
        assert (sample["image"] == batches["13"]["image"].numpy()).all()
        assert (sample["latent"] == batches["13"]["latent"].numpy()).all()


@pytest.mark.parametrize(
    ("preset", "options", "said"),
    [
        (audio_pipeline, {"sampel_rate": 8000}, "did you mean 'sample_rate'"),
        (video_pipeline, {"frame": 8}, "did you mean 'frames'"),
        (joint_video_audio_pipeline, {"audio_options": {"qualty": "HQ"}}, "did you mean 'quality'"),
        (joint_video_audio_pipeline, {"audio_options": {"out": "x"}}, "give audio_out= instead"),
        (
            joint_video_audio_pipeline,
            {"audio_options": {"field": "wav", "mono": 1}},
            "give audio_field=, mono= instead",
        ),
        (joint_video_audio_pipeline, {"video_options": "square"}, "video_options must be a mapping of names"),
        (text_to_video_pipeline, {"video_options": {"frames": 8}}, "give frames= instead"),
        (text_to_video_pipeline, {"video_options": {"field": "mp4", "crop": "start"}}, "give field=, crop= instead"),
        (text_to_video_pipeline, {"video_options": {"colour": 1}}, "there are field, out, frames"),
        (text_to_video_pipeline, {"video_options": {8: "frames"}}, "video_options must be a mapping of names"),
        (text_to_video_pipeline, {"video_options": {"out": "text"}}, "cannot both be in the field 'text'"),
        (text_to_video_pipeline, {"text_options": {"field": "txt"}}, "give text_field= instead"),
        (text_to_video_pipeline, {"text_options": {"file": True}}, "did you mean 'files'"),
        (text_to_video_pipeline, {"text_options": {"embedding_field": "video"}}, "cannot both be in the field 'video'"),
        (text_pipeline, {"embedding_length": 6}, "name their field too"),
        (text_pipeline, {"embedding_field": "text"}, "cannot both be in the field 'text'"),
        (audio_latent_pipeline, {"frame": 8}, "did you mean 'frames'"),
        (joint_video_audio_pipeline, {"video_options": {"colour": 1}}, "there are field, out, frames"),
        (image_pipeline, {"buckets": []}, "leaves an image no size"),
        (image_pipeline, {"fit": "shorter"}, "there is none"),
    ],
)
def test_options_that_would_do_nothing_are_refused_with_what_was_meant(preset, options, said):
    with pytest.raises(ConfigError, match=said):
        preset(**options)
