"""Arrays out of files are those that were saved, and nothing that could run code is read."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save

from penstock import BadMedia, ConfigError, LoadLatent, SampleEmbedding, SampleLatent, image_latent_pipeline, rng
from penstock.transforms.chain import Chain

ARRAY = np.random.default_rng(0).standard_normal((8, 3, 5)).astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(*, packed: bool = False, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **arrays)
    return file.getvalue()


def pt(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def tensors(**arrays: np.ndarray) -> bytes:
    return save({name: torch.from_numpy(array) for name, array in arrays.items()})


@pytest.mark.parametrize(
    "data",
    [
        npy(ARRAY),
        npy(np.asfortranarray(ARRAY)),
        npy(ARRAY.astype(">f4")),
        npz(z=ARRAY),
        npz(packed=True, z=ARRAY),
        pt(torch.from_numpy(ARRAY)),
        pt({"z": torch.from_numpy(ARRAY), "step": 3}),
        tensors(z=ARRAY),
    ],
    ids=["npy", "npy by column", "big-endian npy", "npz", "packed npz", "pt", "pt of a dict", "safetensors"],
)
def test_an_array_of_every_kind_of_file_is_the_one_saved(data, tmp_path):
    (tmp_path / "latent").write_bytes(data)
    for value in (data, tmp_path / "latent"):
        loaded = LoadLatent()({"latent": value})["latent"]
        assert loaded.dtype == np.float32
        assert loaded.flags.writeable
        assert loaded.flags.c_contiguous
        assert (loaded == ARRAY).all()


def test_types_stay_if_asked_and_bfloat16_becomes_float32():
    assert LoadLatent(dtype=None)({"latent": npy(ARRAY.astype(np.float16))})["latent"].dtype == np.float16
    assert LoadLatent(dtype="float16")({"latent": npy(ARRAY)})["latent"].dtype == np.float16
    narrow = torch.from_numpy(ARRAY).bfloat16()
    for data in (pt(narrow), save({"z": narrow})):
        loaded = LoadLatent(dtype=None)({"latent": data})["latent"]
        assert loaded.dtype == np.float32
        assert (loaded == narrow.float().numpy()).all()


@pytest.mark.parametrize("data", [npz(a=ARRAY, b=-ARRAY), tensors(a=ARRAY, b=-ARRAY)], ids=["npz", "safetensors"])
def test_of_several_arrays_one_or_some_are_named(data):
    assert (LoadLatent(key="b", out="z")({"latent": data})["z"] == -ARRAY).all()
    both = LoadLatent(key={"a": "mean", "b": "std"})({"latent": data})
    assert (both["mean"] == -both["std"]).all()
    for transform in (LoadLatent(), LoadLatent(key="c")):
        with pytest.raises(BadMedia, match=r"holds \['a', 'b'\]") as caught:
            transform({"latent": data})
        assert caught.value.reason == "no-such-array"


class Harmful:
    def __reduce__(self):
        return (pytest.fail, ("code from a file was run",))


def zipped(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def lying_npy(*shape: int) -> bytes:
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not-arrays"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "not-arrays"),
        (npy(np.array([Harmful()], object)), "pickled"),
        (npz(z=np.array([Harmful()], object)), "pickled"),
        (pickle.dumps(Harmful()), "pickled"),
        (pt({"z": Harmful()}), "pickled"),
        (pt({"step": 3}), "not-arrays"),
        (npy(ARRAY)[:-1], "truncated"),
        (npy(ARRAY)[:20], "corrupt"),
        (lying_npy(1 << 40, 1 << 20), "truncated"),
        (lying_npy(-1, 4), "truncated"),
        (npz(z=ARRAY)[:-30], "corrupt"),
        (pt(torch.from_numpy(ARRAY))[:-30], "corrupt"),
        (tensors(z=ARRAY)[:-1], "corrupt"),
        (zipped("a.txt", b"hello"), "not-arrays"),
        (zipped("a.npy", bytes(3 << 20)), "too-large"),
        (pt(torch.zeros(1).expand(1 << 40)), "too-large"),
        (npy(np.full(3, np.nan, np.float32)), "not-finite"),
        (npy(np.array([0, -np.inf])), "not-finite"),
    ],
)
def test_what_is_broken_harmful_or_lies_is_refused(data, reason):
    with pytest.raises(BadMedia) as caught:
        LoadLatent(max_bytes=1 << 20)({"latent": data})
    assert caught.value.reason == reason


def test_numbers_that_are_none_can_be_let_through():
    assert np.isnan(LoadLatent(check=False)({"latent": npy(np.full(3, np.nan))})["latent"]).all()


def test_safetensors_whose_header_lies_is_refused():
    header = json.dumps({"z": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    with pytest.raises(BadMedia) as caught:
        LoadLatent()({"latent": struct.pack("<Q", len(header)) + header + bytes(16)})
    assert caught.value.reason == "corrupt"


@pytest.mark.parametrize("shape", [(8, 16, 16), (8, 3, 16, 16)], ids=["image", "video"])
def test_draws_have_the_mean_and_spread_of_the_distribution(shape):
    halves = np.concatenate([np.full((4, *shape[1:]), 2.0), np.full((4, *shape[1:]), 0.5)]).astype(np.float32)
    sample = {"latent": halves}
    drawn = np.stack([SampleLatent()(sample, rng(0, "x", k))["latent"] for k in range(50)])
    assert drawn.shape == (50, 4, *shape[1:])
    assert drawn.dtype == np.float32
    assert drawn.mean() == pytest.approx(2, abs=0.01)
    assert drawn.std() == pytest.approx(0.5, abs=0.01)
    logvar = np.concatenate([halves[:4], np.log(halves[4:] ** 2)])
    again = SampleLatent(spread="logvar")({"latent": logvar}, rng(0, "x", 0))["latent"]
    np.testing.assert_allclose(again, drawn[0], rtol=1e-5)
    scaled = SampleLatent(scale=2, shift=1)(sample, rng(0, "x", 0))["latent"]
    np.testing.assert_allclose(scaled, (drawn[0] - 1) * 2, rtol=1e-5)
    assert (SampleLatent(random=False)(sample)["latent"] == 2).all()


def test_mean_and_spread_may_be_fields_of_their_own():
    sample = {"latent": np.ones((4, 2)), "std": np.zeros((4, 2)), "id": 1}
    made = SampleLatent(spread_field="std")(sample, rng(0, "x"))
    assert sorted(made) == ["id", "latent"]
    assert (made["latent"] == 1).all()
    with pytest.raises(BadMedia, match=r"\[4, 2\], 'std' \[3\]"):
        SampleLatent(spread_field="std")({**sample, "std": np.ones(3)}, rng(0, "x"))
    with pytest.raises(BadMedia, match="can't be cut into a mean"):
        SampleLatent()({"latent": np.ones((3, 2))}, rng(0, "x"))


def test_an_embedding_is_chosen_cut_and_filled():
    several = np.arange(2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
    chosen = {SampleEmbedding()({"embedding": several}, rng(0, "x", k))["embedding"][0, 0] for k in range(30)}
    assert chosen == {0.0, 15.0}
    cut = SampleEmbedding(length=4, random=False)({"embedding": several})
    assert cut["embedding"].tolist() == several[0, :4].tolist()
    filled = SampleEmbedding(length=7, mask="m")({"embedding": several[1]})
    assert filled["embedding"][5:].tolist() == [[0] * 3] * 2
    assert filled["m"].tolist() == [1] * 5 + [0] * 2
    with pytest.raises(BadMedia, match="embeddings are"):
        SampleEmbedding()({"embedding": np.ones(3)})


def test_the_preset_loads_and_draws_from_one_array_or_two():
    data = npz(mean=ARRAY, std=np.abs(ARRAY))
    chain = Chain(image_latent_pipeline(key={"mean": "latent", "std": "s"}, spread_field="s"), seed=1)
    first, second = (chain({"latent": data}, epoch=0, id_=2)[0] for _ in range(2))
    assert sorted(first) == ["latent"]
    assert (first["latent"] == second["latent"]).all()
    assert (chain({"latent": data}, epoch=1, id_=2)[0]["latent"] != first["latent"]).any()
    halves = Chain(image_latent_pipeline(out="z", scale=0.5))({"latent": npy(np.abs(ARRAY))}, epoch=0, id_=0)[0]["z"]
    assert halves.shape == (4, 3, 5)
    assert Chain(image_latent_pipeline())({"latent": None}, epoch=0, id_=0) == [{"latent": None}]
    with pytest.raises(ConfigError, match="give one of them"):
        LoadLatent(out="z", key={"a": "b"})


@pytest.mark.parametrize("spread_field", [None, "std"])
def test_a_spread_below_0_is_refused(spread_field):
    mean, std = np.zeros((2, 3), np.float32), np.array([[0.1, 0.2, 0.3], [0.1, -0.2, 0.3]], np.float32)
    sample = {"latent": mean, "std": std} if spread_field else {"latent": np.concatenate([mean, std])}
    with pytest.raises(BadMedia, match=r"below 0, -0\.2") as caught:
        SampleLatent(spread_field=spread_field)(sample, rng(0))
    assert caught.value.reason == "negative-std"
    assert np.isfinite(SampleLatent(spread_field=spread_field, spread="logvar")(sample, rng(0))["latent"]).all()


@pytest.mark.parametrize("options", [{"scale": float("nan")}, {"shift": float("inf")}])
def test_numbers_that_would_spoil_every_latent_are_refused_at_once(options):
    with pytest.raises(ConfigError, match="must be finite"):
        image_latent_pipeline(**options)
