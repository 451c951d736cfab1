"""Sizes alone make rounds; limits hold where there is none, and are overridden, once and aloud, where there is."""

from __future__ import annotations

import argparse
import itertools
import re
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from penstock import ConfigError, RoundSizes, StreamingDataLoader, resolve_rounds

MODES = {
    "standard": {},
    "train": {"train_chunk_size": 2000},
    "val": {"val_chunk_size": 200},
    "both": {"train_chunk_size": 2000, "val_chunk_size": 200},
}
LIMITS = {
    "none": {},
    "train": {"limit_train_batches": 500},
    "val": {"limit_val_batches": 50},
    "both": {"limit_train_batches": 500, "limit_val_batches": 50},
}


@dataclass
class Train:
    lr: float = 0.1
    train_chunk_size: int | None = None
    val_chunk_size: int | None = None


@dataclass
class Trainer:
    max_epochs: int = 3
    limit_train_batches: int | None = None
    limit_val_batches: int | None = None


@dataclass
class Nested:
    train: Train = field(default_factory=Train)
    trainer: Trainer = field(default_factory=Trainer)


@dataclass
class Flat:
    lr: float = 0.1
    train_chunk_size: int | None = None
    val_chunk_size: int | None = None
    limit_train_batches: int | None = None
    limit_val_batches: int | None = None


def parsed(sizes: dict[str, int], limits: dict[str, int]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("train-chunk-size", "val-chunk-size", "limit-train-batches", "limit-val-batches"):
        parser.add_argument(f"--{name}", type=int)
    return parser.parse_args([f"--{name.replace('_', '-')}={value}" for name, value in {**sizes, **limits}.items()])


def dotted(sizes: dict[str, int], limits: dict[str, int]) -> argparse.Namespace:
    named = {f"train.{name}": value for name, value in sizes.items()}
    return argparse.Namespace(**named, **{f"trainer.{name}": value for name, value in limits.items()})


# Each makes, of sizes and limits, the same configuration in another kind, and says how its keys are called.
SOURCES = {
    "dict": (lambda sizes, limits: {"train": sizes, "trainer": limits}, True),
    "flat dict": (lambda sizes, limits: {"lr": 0.1, **sizes, **limits}, False),
    "omegaconf": (lambda sizes, limits: OmegaConf.create({"train": sizes, "trainer": limits}), True),
    "structured omegaconf": (
        lambda sizes, limits: OmegaConf.merge(OmegaConf.structured(Nested), {"train": sizes, "trainer": limits}),
        True,
    ),
    "argparse": (parsed, False),
    "dotted argparse": (dotted, True),
    "nested namespace": (
        lambda sizes, limits: types.SimpleNamespace(
            train=argparse.Namespace(**sizes), trainer=types.SimpleNamespace(**limits)
        ),
        True,
    ),
    "dataclass": (lambda sizes, limits: Nested(train=Train(**sizes), trainer=Trainer(**limits)), True),
    "flat dataclass": (lambda sizes, limits: Flat(**sizes, **limits), False),
}


def resolve(config: Any) -> tuple[RoundSizes, list[str]]:
    """Resolve, and give what was warned of beside the answer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sizes = resolve_rounds(config)
    told = [str(warning.message) for warning in caught]
    assert list(sizes.warnings) == told
    assert all(warning.filename == __file__ for warning in caught)
    return sizes, told


@pytest.mark.parametrize(("mode", "limit", "source"), list(itertools.product(MODES, LIMITS, SOURCES)))
def test_every_mode_with_every_limit_from_every_kind_of_configuration(mode, limit, source):
    make, has_sections = SOURCES[source]
    given, limits = MODES[mode], LIMITS[limit]
    sizes, told = resolve(make(given, limits))
    assert sizes.enabled == bool(given)
    assert sizes.train_chunk_size == given.get("train_chunk_size")
    assert sizes.val_chunk_size == given.get("val_chunk_size")
    left = {} if given else limits
    assert sizes.limit_train_batches == left.get("limit_train_batches")
    assert sizes.limit_val_batches == left.get("limit_val_batches")
    if not (given and limits):
        assert told == []
        return
    [text] = told
    prefix = ("train.", "trainer.") if has_sections else ("", "")
    assert " and ".join(f"{prefix[0]}{name}" for name in given) + " makes rounds" in text
    assert text.startswith(
        ", ".join(f"{prefix[1]}{name}={value}" for name, value in limits.items()) + ": ignored, because "
    )


# The examples of a configuration as users of `limit_*_batches` have it, before and after.
@pytest.mark.parametrize(
    ("text", "expected", "told"),
    [
        (
            "train: {train_chunk_size: 2000, val_chunk_size: 200}",
            RoundSizes(train_chunk_size=2000, val_chunk_size=200),
            [],
        ),
        (
            "train: {train_chunk_size: 2000, limit_val_batches: 200}",
            RoundSizes(train_chunk_size=2000),
            ["train.limit_val_batches=200: ignored, because train.train_chunk_size makes rounds"],
        ),
        (
            "train: {val_chunk_size: 200, limit_train_batches: 2000}",
            RoundSizes(val_chunk_size=200),
            ["train.limit_train_batches=2000: ignored, because train.val_chunk_size makes rounds"],
        ),
        (
            "train: {limit_train_batches: 2000, limit_val_batches: 200}",
            RoundSizes(limit_train_batches=2000, limit_val_batches=200),
            [
                "train.limit_train_batches is taken for trainer.limit_train_batches: write trainer.limit_train_b",
                "train.limit_val_batches is taken for trainer.limit_val_batches: write trainer.limit_val_batches",
            ],
        ),
        (
            "trainer: {limit_train_batches: 2000, limit_val_batches: 200}",
            RoundSizes(limit_train_batches=2000, limit_val_batches=200),
            [],
        ),
        (
            "trainer: {limit_train_batches: 9, limit_val_batches: 8}\ntrain: {train_chunk_size: 7, val_chunk_size: 6}",
            RoundSizes(train_chunk_size=7, val_chunk_size=6),
            ["trainer.limit_train_batches=9, trainer.limit_val_batches=8: ignored, because train.train_chunk_size and"],
        ),
        ("{loader: {batch_size: 32}, train: null, trainer: {}}", RoundSizes(), []),
    ],
)
def test_documented_configurations(text, expected, told):
    found, heard = resolve(OmegaConf.create(text))
    assert len(heard) == len(told)
    assert all(line.startswith(start) for line, start in zip(heard, told, strict=True))
    assert found == RoundSizes(
        train_chunk_size=expected.train_chunk_size,
        val_chunk_size=expected.val_chunk_size,
        limit_train_batches=expected.limit_train_batches,
        limit_val_batches=expected.limit_val_batches,
        warnings=tuple(heard),
    )


@pytest.mark.parametrize(
    ("config", "name", "right"),
    [
        ({"train": {"train-chunk-size": 5}}, "train_chunk_size", "train.train_chunk_size"),
        ({"train": {"train_chunksize": 5}}, "train_chunk_size", "train.train_chunk_size"),
        ({"train": {"trainChunkSize": 5}}, "train_chunk_size", "train.train_chunk_size"),
        ({"train": {"train_round_batches": 5}}, "train_chunk_size", "train.train_chunk_size"),
        ({"train_chunk_size": 5, "trainer": {}}, "train_chunk_size", "train.train_chunk_size"),
        ({"trainer": {"train_chunk_size": 5}}, "train_chunk_size", "train.train_chunk_size"),
        ({"train": {"eval_chunk_size": 5}}, "val_chunk_size", "train.val_chunk_size"),
        ({"train": {"valid-chunk-size": 5}}, "val_chunk_size", "train.val_chunk_size"),
        ({"train": {"validation_chunk_size": 5}}, "val_chunk_size", "train.val_chunk_size"),
        ({"val_round_batches": 5}, "val_chunk_size", "val_chunk_size"),
        ({"train": {}, "limit_val_batches": 5}, "limit_val_batches", "trainer.limit_val_batches"),
        ({"limit-train-batches": 5}, "limit_train_batches", "limit_train_batches"),
        ({"trainer": {"limit_eval_batches": 5}}, "limit_val_batches", "trainer.limit_val_batches"),
    ],
)
def test_another_name_or_place_is_understood_and_said(config, name, right):
    sizes, told = resolve(config)
    assert getattr(sizes, name) == 5
    assert len(told) == 1
    assert told[0].endswith(f" is taken for {right}: write {right}")


def test_two_places_that_agree_are_one_and_two_that_do_not_are_refused():
    sizes, told = resolve({"train_chunk_size": 5, "train": {"train_chunk_size": 5}})
    assert (sizes.train_chunk_size, len(told)) == (5, 1)
    with pytest.raises(ConfigError, match=r"train_chunk_size is 5 and train.train_chunk_size is 6: leave one of the t"):
        resolve_rounds({"train_chunk_size": 5, "train": {"train_chunk_size": 6}})
    with pytest.raises(ConfigError, match=r"limit_val_batches is 5 and trainer.limit_val_batches is 6"):
        resolve_rounds({"train": {"limit_val_batches": 5}, "trainer": {"limit_val_batches": 6}})
    # Where a size overrides both, it does not matter.
    config = {"train": {"val_chunk_size": 1, "limit_val_batches": 5}, "trainer": {"limit_val_batches": 6}}
    assert len(resolve(config)[1]) == 1


@pytest.mark.parametrize("name", ["train_chunk_size", "val_chunk_size"])
@pytest.mark.parametrize("value", [0, -1, 2000.0, True, False, "2000", [5], 2**62 + 1, float("nan")])
def test_a_size_that_is_no_count_is_refused_by_its_key(name, value):
    for config, key in (({"train": {name: value}}, f"train.{name}"), (argparse.Namespace(**{name: value}), name)):
        with pytest.raises(ConfigError, match=f"^{key} must be an integer from 1 to 4611686018427387904, got "):
            resolve_rounds(config)


def test_sizes_from_one_to_the_largest_that_a_loader_takes_are_taken():
    sizes = resolve_rounds({"train_chunk_size": 1, "val_chunk_size": 2**62})
    with StreamingDataLoader(list(range(9)), 1, round_batches=sizes.val_chunk_size) as loader:
        assert len(loader) == 2**62
    found = resolve_rounds({"train_chunk_size": np.int64(7)}).train_chunk_size
    assert (found, type(found)) == (7, int)


@pytest.mark.parametrize("value", [-1, 1.5, -0.5, float("nan"), "all", True])
def test_a_limit_that_would_hold_is_checked_and_one_that_is_overridden_is_not(value):
    with pytest.raises(ConfigError, match=r"^trainer.limit_train_batches must be "):
        resolve_rounds({"trainer": {"limit_train_batches": value}})
    sizes, told = resolve({"trainer": {"limit_train_batches": value}, "train": {"train_chunk_size": 1}})
    assert (sizes.limit_train_batches, len(told)) == (None, 1)


def test_limits_are_counts_or_shares_and_a_share_of_one_is_no_limit_to_speak_of():
    sizes = resolve_rounds({"trainer": {"limit_train_batches": 0.25, "limit_val_batches": 0}})
    assert (sizes.limit_train_batches, sizes.limit_val_batches) == (0.25, 0)
    limits = {"limit_train_batches": 1.0, "limit_val_batches": 1.0}
    assert resolve({"trainer": limits, "train": {"val_chunk_size": 3}})[1] == []
    assert len(resolve({"trainer": {"limit_train_batches": 1}, "train": {"val_chunk_size": 3}})[1]) == 1


@pytest.mark.parametrize("config", [None, 5, "train.yaml", ["train"], Flat, dict, OmegaConf.create([1])])
def test_what_is_no_configuration_is_refused(config):
    with pytest.raises(ConfigError, match=r"must be a mapping, a namespace or a dataclass, got .*: read a file first"):
        resolve_rounds(config)


def test_only_what_is_asked_for_is_looked_up():
    """Values of OmegaConf that are still missing, or refer to others, are nobody's business but their user's."""
    config = OmegaConf.create(
        {"data": "???", "train": {"name": "${nothing.there}", "train_chunk_size": "${size}"}, "size": 12}
    )
    assert resolve_rounds(config).train_chunk_size == 12
    with pytest.raises(MissingMandatoryValue, match=r"train.val_chunk_size"):
        resolve_rounds(OmegaConf.create({"train": {"val_chunk_size": "???"}}))


def test_a_flag_called_train_is_no_section():
    sizes, told = resolve(argparse.Namespace(train=True, trainer="gpu", train_chunk_size=4, test_chunk_size=9))
    assert (sizes.train_chunk_size, told) == (4, [])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"train": {"train_chunk_sise": 5}}, "train.train_chunk_sise=5 … did you mean train.train_chunk_size?"),
        ({"train": {"vall-chunk-size": 5}}, "train.vall-chunk-size=5 … did you mean train.val_chunk_size?"),
        ({"train": {"chunk_size_train": 5}}, "train.chunk_size_train=5 … did you mean train.train_chunk_size?"),
        ({"train": {"chunk_size": 5}}, "train.chunk_size=5 … did you mean train.train_chunk_size?"),
        ({"train": {"round_batches": 5}}, "train.round_batches=5 … did you mean train.train_chunk_size?"),
        ({"trian": {"train_chunk_size": 5}}, "trian.train_chunk_size=5 … did you mean train.train_chunk_size?"),
        ({"training": {"chunk_size": 5}}, "training.chunk_size=5 … did you mean train.train_chunk_size?"),
        ({"train_chunk_siz": 5}, "train_chunk_siz=5 … did you mean train_chunk_size?"),
        ({"train.train_chunk_sizes": 5}, "train.train_chunk_sizes=5 … did you mean train.train_chunk_size?"),
        ({"trainer": {"limit_trian_batches": 5}}, "trainer.limit_trian_batches=5 … mean trainer.limit_train_batches?"),
        (
            {"experiment": {"train": {"train_chunk_size": 5}}},
            "experiment.train.train_chunk_size=5 … mean train.train_chunk_size? Give resolve_rounds what is under exp",
        ),
        ({"train": {"train_chunk_size": 5, "val_chunk_sise": 2}}, "val_chunk_sise=2 … did you mean train.val_chunk_"),
    ],
)
def test_what_is_nearly_a_name_changes_nothing_and_is_said(config, text):
    """In every kind of configuration, for a size that nobody finds switches rounds off."""
    named = types.SimpleNamespace(
        **{key: types.SimpleNamespace(**value) if isinstance(value, dict) else value for key, value in config.items()}
    )
    for kind in (config, OmegaConf.create(config), named):
        sizes, [told] = resolve(kind)
        assert re.search(re.escape(text).replace("…", ".*"), told), told
        assert (sizes.train_chunk_size, sizes.val_chunk_size, sizes.limit_train_batches) == (
            config.get("train", {}).get("train_chunk_size"),
            None,
            None,
        )


@pytest.mark.parametrize(
    "config",
    [
        {"train": {"train_batch_size": 5, "val_batch_size": 5, "max_chunk_size": 5, "test_chunk_size": 5}},
        {"trainer": {"limit_test_batches": 5, "limit_predict_batches": 5, "log_every_n_steps": 5}},
        {"data": {"chunk_size": 5, "train_files": 5}, "chunk_size": 5, "round_batches": 5},
        {
            "train": {"train_chunk_size": 5, "chunk_size": 4096},
            "data": {"train_chunk_size": "${train.train_chunk_size}"},
        },
        {"train": {"train_chunks": "chunks/train", "train_chunk_sise": None}},
    ],
)
def test_what_means_something_else_is_nobodys_business(config):
    assert resolve(config)[1] == resolve(OmegaConf.create(config))[1] == []


GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "rounds.md"


def test_the_guides_table_is_what_happens():
    """Each row of the page, resolved: sizes and limits that hold, and whether somebody is warned."""
    rows = re.findall(r"^\| ([–n]) \| ([–n]) \| ([–n]) \| ([–n]) \| (.*) \| (.*) \| (.*) \|$", GUIDE.read_text(), re.M)
    assert len({row[:4] for row in rows}) == len(rows) == 16
    said = {
        (True, None, None): "all, each round",
        (True, 7, None): "the next n batches",
        (False, None, None): "all, each epoch",
        (False, None, 7): "the first n batches of each epoch",
    }
    for *given, trained, validated, warning in rows:
        names = ("train_chunk_size", "val_chunk_size", "limit_train_batches", "limit_val_batches")
        values = {name: 7 for name, mark in zip(names, given, strict=True) if mark == "n"}
        sizes, told = resolve(values)
        assert said[sizes.enabled, sizes.train_chunk_size, sizes.limit_train_batches] == trained
        on = said[sizes.enabled, sizes.val_chunk_size, sizes.limit_val_batches]
        assert validated == on.removesuffix(", each round").removesuffix(", each epoch").removesuffix(" of each epoch")
        assert len(told) == (warning != "–")
        assert warning == ("–" if not told else "limits ignored" if given[2:] == ["n", "n"] else "limit ignored")
