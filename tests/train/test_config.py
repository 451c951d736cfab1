"""A file of settings is read as it is meant, or refused with the line and what to write."""

from __future__ import annotations

import dataclasses

import pytest

from penstock import ConfigError, ObjectMissing, TrainingConfig, read_config
from penstock.train.config import CHUNK_THRESHOLD

SEED = """\
# In training config
samples_per_block: 100000   # Samples per downloaded block
dataset_chunk_size: 4000    # Samples loaded into RAM at once

use_chunked_training: true  # Enable for long sequences
chunk_size: 2048           # Tokens per GPU chunk
"""


def write(folder, text: str):
    path = folder / "training.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_documented_file_is_read(tmp_path):
    config = read_config(write(tmp_path, SEED))
    assert config == TrainingConfig(use_chunked_training=True)
    assert (config.samples_per_block, config.dataset_chunk_size, config.chunk_size) == (100_000, 4_000, 2_048)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_what_is_not_mentioned_keeps_its_default(tmp_path, text):
    assert read_config(write(tmp_path, text)) == TrainingConfig()
    assert not TrainingConfig().use_chunked_training


def test_every_setting_can_be_written_and_read_back(tmp_path):
    values = {
        "samples_per_block": 10,
        "dataset_chunk_size": 3,
        "use_chunked_training": True,
        "chunk_size": 7,
        "chunk_threshold": 9,
        "max_segments": 2,
        "gradient_checkpointing": True,
        "cpu_offload": True,
        "tokenizer": "gpt2",
        "seq_len": 11,
        "batch_size": 4,
        "learning_rate": 0.5,
        "seed": 6,
        "lease_s": 30.0,
    }
    lines = [f"{name}: {str(value).lower() if isinstance(value, bool) else value}\n" for name, value in values.items()]
    config = read_config(write(tmp_path, "".join(lines)))
    assert dataclasses.asdict(config) == values
    default = dataclasses.asdict(TrainingConfig())
    assert [name for name in values if values[name] == default[name]] == []


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("samples_per_block: 100_000", "samples_per_block", 100_000),
        ("learning_rate: 1e-3", "learning_rate", 0.001),
        ("lease_s: 30", "lease_s", 30.0),
        ("chunk_threshold: null", "chunk_threshold", None),
        ("cpu_offload: yes", "cpu_offload", True),
    ],
)
def test_values_are_read_as_people_write_them(tmp_path, line, name, value):
    found = getattr(read_config(write(tmp_path, f"{line}\n")), name)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\ndataset_chunksize: 5\n",
            r"line 2: there is no key 'dataset_chunksize'; did you mean dataset_chunk_s",
        ),
        ("samples_per_blocks: 5\n", r"line 1: .* did you mean samples_per_block\?"),
        ("colour: red\n", r"line 1: there is no key 'colour'; the keys are samples_per_block, dataset_chunk_size, use"),
        ("train:\n  chunk_size: 5\n", r"line 1: there is no key 'train'; keys stand at the top level"),
        ("? [a, b]\n: 5\n", r"line 1: there is no key"),
        ("seed: 1\nbatch_size: 8\nseed: 2\n", r"line 3: seed is given twice"),
        ("\n\nchunk_size: big\n", r"line 3: chunk_size must be an integer >= 1, got 'big' \(str\)"),
        ("chunk_size: 0\n", r"line 1: chunk_size must be an integer >= 1, got 0"),
        ("chunk_size: 1.5\n", r"line 1: chunk_size must be an integer >= 1, got 1.5"),
        ("chunk_size: true\n", r"line 1: chunk_size must be an integer"),
        ("chunk_size:\n", r"line 1: chunk_size must be an integer >= 1, got None"),
        ("chunk_size: [5]\n", r"line 1: chunk_size must be an integer >= 1, got \[5\]"),
        ("chunk_threshold: 0\n", r"line 1: chunk_threshold must be an integer >= 1, got 0"),
        ('use_chunked_training: "true"\n', r"line 1: use_chunked_training must be one of True, False; got 'true'"),
        ("use_chunked_training: 1\n", r"line 1: use_chunked_training must be one of True, False; got 1"),
        ("learning_rate: 0\n", r"line 1: learning_rate must be a number above 0, got 0"),
        ("learning_rate: fast\n", r"line 1: learning_rate must be a number above 0, got 'fast'"),
        ("lease_s: .inf\n", r"line 1: lease_s must be a number above 0, got inf"),
        ("lease_s: .nan\n", r"line 1: lease_s must be a number above 0, got nan"),
        ("tokenizer: 5\n", r"line 1: tokenizer must be a path or a name, got 5"),
        ("tokenizer: !!python/object/apply:os.system [true]\n", r"line 1: could not determine a constructor"),
        ("seed: 2024-13-45\n", r"line 1: "),
        ("- seed\n", r"must hold lines of `key: value`, it holds a seq"),
        ("seed: 1\n  chunk_size: 2\n", r"line 2: this is no YAML: mapping values are not allowed here"),
        ("seed: 1\n---\nseed: 2\n", r"line 2: this is no YAML: but found another document"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as refused:
        read_config(write(tmp_path, text))
    assert "training.yaml" in str(refused.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(ObjectMissing, match=r"absent.yaml does not exist"):
        read_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_config(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_config(tmp_path / "bytes.yaml")


def test_values_given_in_python_are_checked_too():
    with pytest.raises(ConfigError, match="batch_size must be an integer >= 1, got 0"):
        TrainingConfig(batch_size=0)
    assert TrainingConfig(lease_s=5).lease_s == 5.0


def test_long_sequences_are_chunked_by_the_switch_or_by_the_threshold():
    long = 131_072
    assert not TrainingConfig().use_chunks(long)
    assert TrainingConfig(use_chunked_training=True).use_chunks(512)
    for switch in (False, True):
        config = TrainingConfig(use_chunked_training=switch, chunk_threshold=CHUNK_THRESHOLD)
        assert [config.use_chunks(length) for length in (512, 10_000, 10_001, long)] == [False, False, True, True]
