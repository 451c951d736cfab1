"""Fields renamed, chosen, parsed and numbered; a value that does not fit is an error that names it."""

from __future__ import annotations

import pickle
from decimal import Decimal

import numpy as np
import pytest

from penstock import (
    BadMedia,
    Cast,
    ClassId,
    ConfigError,
    Constants,
    Drop,
    Filter,
    Gather,
    LoadJson,
    ObjectMissing,
    OneHot,
    PickSubfield,
    ReadText,
    Rename,
    SampleText,
    metadata_pipeline,
    rng,
    text_pipeline,
)
from penstock.transforms.chain import Chain

NESTED = {"a": {"b": [10, {"c.d": 20}]}}


def long_enough(sample) -> bool:
    return len(sample["text"]) > 3


ALL = [
    Rename({"a": "b"}),
    Gather(["a"]),
    Gather(["a", "z"], missing=None),
    Drop(["a"]),
    Filter(long_enough),
    Constants({"k": 1}),
    Cast({"a": "int64"}),
    LoadJson("a"),
    PickSubfield("a", "b.c"),
    PickSubfield("a", "b.c", default=None),
    ClassId("a", ["x"]),
    OneHot("a", 3),
    ReadText("a"),
    SampleText("a"),
]


@pytest.mark.parametrize("transform", ALL, ids=lambda transform: type(transform).__name__)
def test_each_pickles_and_gives_the_same_afterwards(transform):
    again = pickle.loads(pickle.dumps(transform))
    assert again == transform
    sample = {"a": None, "text": "abcd"}
    assert again(sample) == transform(sample)
    assert sample == {"a": None, "text": "abcd"}


def test_renaming_never_loses_a_field():
    assert Rename({"a": "b", "b": "a"})({"a": 1, "b": 2}) == {"b": 1, "a": 2}
    with pytest.raises(ConfigError, match=r"two fields called \['b'\]"):
        Rename({"a": "b"})({"a": 1, "b": 2})
    with pytest.raises(ConfigError, match="no field 'x'"):
        Rename({"x": "b"})({"a": 1})


def test_gathering_says_what_is_missing_unless_told_what_to_put():
    with pytest.raises(ConfigError, match=r"no field 'z', it has \['a'\]"):
        Gather(["z"])({"a": 1})
    assert Gather(["z", "a"], missing=0)({"a": 1}) == {"z": 0, "a": 1}
    with pytest.raises(ConfigError, match="list of names"):
        Gather("a")


def test_json_is_parsed_from_text_bytes_and_files(tmp_path):
    (tmp_path / "a.json").write_text('{"a": {"b": [10, {"c.d": 20}]}}')
    for value in ('  {"a": {"b": [10, {"c.d": 20}]}}', (tmp_path / "a.json").read_bytes(), str(tmp_path / "a.json")):
        assert LoadJson()({"json": value})["json"] == NESTED
    with pytest.raises(BadMedia, match="is no JSON") as caught:
        LoadJson()({"json": '{"a":'})
    assert caught.value.reason == "malformed-json"
    with pytest.raises(ObjectMissing):
        LoadJson()({"json": "a.json"})


def test_what_is_inside_is_picked_or_said_to_be_missing():
    assert PickSubfield("j", "a.b.0", "out")({"j": NESTED})["out"] == 10
    assert PickSubfield("j", "a.b.-1")({"j": NESTED})["j"] == {"c.d": 20}
    assert PickSubfield("j", ["a", "b", 1, "c.d"])({"j": NESTED})["j"] == 20
    assert PickSubfield("j", "a.x.y", default=-1)({"j": NESTED})["j"] == -1
    with pytest.raises(BadMedia, match="ends at '5', in") as caught:
        PickSubfield("j", "a.b.5")({"j": NESTED})
    assert caught.value.reason == "missing"


def test_classes_become_numbers_and_numbers_vectors():
    assert ClassId("c", {"cat": 3, "dog": 5}, "id")({"c": "dog"})["id"] == 5
    several = ClassId("c", ["cat", "dog"])({"c": ["dog", "cat", "dog"]})["c"]
    assert (several.tolist(), several.dtype) == ([1, 0, 1], np.int64)
    assert ClassId("c", ["cat"], unknown=-1)({"c": "cow"})["c"] == -1
    with pytest.raises(BadMedia, match="'cow' in the field 'c' is none of 'cat'"):
        ClassId("c", ["cat"])({"c": "cow"})
    with pytest.raises(ConfigError, match="a name twice"):
        ClassId("c", ["cat", "cat"])
    assert OneHot("c", 4)({"c": [0, 2]})["c"].tolist() == [1, 0, 1, 0]
    assert OneHot("c", 2)({"c": []})["c"].tolist() == [0, 0]
    for wrong in (-1, 4, 0.5, "1"):
        with pytest.raises(BadMedia, match="from 0 to 3"):
            OneHot("c", 4)({"c": wrong})


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ("3", "int64", 3),
        (3, "float32", 3.0),
        (3.0, "int16", 3),
        ([1, 2], "uint8", [1, 2]),
        ("0.5", "float64", 0.5),
        (True, "float32", 1.0),
        (1, "bool", True),
        (False, "bool", False),
        (float("inf"), "float16", float("inf")),
        ("-inf", "float32", float("-inf")),
        ([0.1, 65_504.0], "float16", [0.0999755859375, 65_504.0]),
    ],
)
def test_numbers_are_cast(value, dtype, expected):
    cast = Cast({"x": dtype})({"x": value})["x"]
    assert (cast.tolist(), cast.dtype) == (expected, dtype)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ("x", "int64"),
        (3.5, "int64"),
        (300, "uint8"),
        (-1, "uint8"),
        ({}, "int8"),
        ("300", "uint8"),
        (float("nan"), "int64"),
        (Decimal("3.5"), "int64"),
        ("false", "bool"),
        (5, "bool"),
        ([0, 2], "bool"),
        (70_000.0, "float16"),
        (1e39, "float32"),
        ("1e39", "float32"),
        ([1.0, -1e300], "float32"),
        (1 + 2j, "float64"),
    ],
)
def test_a_number_never_becomes_another_one(value, dtype):
    with pytest.raises(BadMedia, match=f"which {dtype} can't hold"):
        Cast({"x": dtype})({"x": value})
    with pytest.raises(ConfigError, match="numbers of numpy"):
        Cast({"x": "text"})


def test_texts_are_read_and_one_of_several_chosen(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff naïve \n".encode())
    assert ReadText()({"txt": tmp_path / "a.txt"})["txt"] == "naïve"
    with pytest.raises(BadMedia, match="no UTF-8"):
        ReadText()({"txt": b"\xff\xfe"})
    texts = ["a", "b", "c"]
    chosen = [SampleText(drop=0.25)({"text": texts}, rng(0, "x", k))["text"] for k in range(1000)]
    counts = {text: chosen.count(text) for text in ["", *texts]}
    assert all(200 < count < 300 for count in counts.values())
    assert SampleText(random=False)({"text": texts})["text"] == "a"
    assert SampleText()({"text": "one"})["text"] == "one"
    with pytest.raises(BadMedia, match="without a text"):
        SampleText()({"text": []}, rng(0, "x"))


@pytest.mark.parametrize("value", [b"na\xc3\xafve", bytearray(b"na\xc3\xafve"), [b"na\xc3\xafve"], ["naïve"]])
def test_bytes_are_a_text_and_not_numbers_to_choose_from(value):
    assert Chain(text_pipeline()).one({"text": value}, epoch=0, id_=0) == {"text": "naïve"}


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(BadMedia, match="no UTF-8") as caught:
        Chain(text_pipeline()).one({"text": b"\xff\xfe"}, epoch=0, id_=0)
    assert caught.value.reason == "not-text"


def test_the_preset_of_metadata_does_its_steps_in_their_order():
    steps = metadata_pipeline(
        json_field="json",
        pick={"label": "kind", "size": "box.2", "text": "text"},
        rename={"__sample_key__": "key"},
        keep_if=long_enough,
        classes={"label": ["cat", "dog"]},
        one_hot={"label": 2},
        dtypes={"size": "float32"},
        constants={"source": "web"},
        fields=["key", "label", "size", "source"],
    )
    chain = Chain(steps)
    sample = {"__sample_key__": "k", "json": '{"kind": "dog", "box": [0, 0, 7], "text": "abcd"}'}
    (made,) = chain(sample, epoch=0, id_=0)
    assert {**made, "label": made["label"].tolist()} == {"key": "k", "label": [0, 1], "size": 7, "source": "web"}
    assert chain({**sample, "json": sample["json"].replace("abcd", "abc")}, epoch=0, id_=0) == []
    with pytest.raises(ConfigError, match="json_field"):
        metadata_pipeline(pick={"a": "b"})


def test_the_preset_of_texts_tokenizes_and_loads_embeddings(tmp_path):
    np.save(tmp_path / "e.npy", np.ones((2, 5, 4), np.float16))
    (tmp_path / "a.txt").write_text("abc")
    steps = text_pipeline("txt", files=True, tokenizer="bytes", seq_length=6, embedding_field="e", embedding_length=8)
    (made,) = Chain(steps)({"txt": tmp_path / "a.txt", "e": tmp_path / "e.npy"}, epoch=0, id_=0)
    assert made["input_ids"].tolist() == [97, 98, 0, 0, 0, 0]
    assert made["e"].shape == (8, 4)
    assert made["e_mask"].tolist() == [1] * 5 + [0] * 3
    (plain,) = Chain(text_pipeline("captions"))({"captions": ["a"]}, epoch=0, id_=0)
    assert plain == {"captions": "a"}
    with pytest.raises(ConfigError, match="go together"):
        text_pipeline(tokenizer="bytes")


def test_no_text_stays_none_in_all_that_a_tokenizer_makes_of_it():
    made = Chain(text_pipeline(tokenizer="bytes", seq_length=4)).one({"text": None, "id": 7}, epoch=0, id_=0)
    assert made == {"id": 7, "input_ids": None, "labels": None, "attention_mask": None}
