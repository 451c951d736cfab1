"""Keys are stable, distinct, and independent of everything but their names."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.seeds import key, rng, uniform

FROZEN = {
    "key(0)": [17613239522589000358, 6626638949878664088, 5313552239502020732, 280992782976195406],
    'key(42, "order", 1)': [17976466494524425539, 248710179911139650, 13208702553072303235, 16881502877957290555],
    'key(-1, "Füllung", 2**70)': [8916202246357868571, 3233456053149224416, 12902926108431056117, 13976591587786803152],
    'rng(0, "crop", 3, 17)': [392600223749, 526812711527],
    'uniform(7, "substitute", 0, 5)': 4106505446540126751,
}
NAMES = st.lists(st.one_of(st.text(max_size=8), st.integers()), max_size=4).map(tuple)


def test_keys_are_what_they_were():
    """Frozen: another value here is another order for everybody."""
    assert key(0).tolist() == FROZEN["key(0)"]
    assert key(42, "order", 1).tolist() == FROZEN['key(42, "order", 1)']
    assert key(-1, "Füllung", 2**70).tolist() == FROZEN['key(-1, "Füllung", 2**70)']
    assert rng(0, "crop", 3, 17).integers(1 << 40, size=2).tolist() == FROZEN['rng(0, "crop", 3, 17)']
    assert uniform(7, "substitute", 0, 5) == FROZEN['uniform(7, "substitute", 0, 5)']


@given(one=st.tuples(st.integers(), NAMES), other=st.tuples(st.integers(), NAMES))
def test_different_names_give_different_keys(one, other):
    keys = [key(seed, *names).tolist() for seed, names in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_names_do_not_run_into_each_other():
    keys = {
        tuple(key(*names).tolist()) for names in [(0, "a", "b"), (0, "ab"), (0, "a", 1), (0, "a1"), (0, 1), (0, "1")]
    }
    assert len(keys) == 6


def test_numpy_integers_are_integers():
    assert key(np.int64(3), np.uint8(4)).tolist() == key(3, 4).tolist()


def test_a_key_is_four_words():
    assert (key(5).dtype, key(5).shape) == (np.dtype("uint64"), (4,))


def test_generators_of_neighbours_are_unrelated():
    draws = np.array([rng(0, "crop", epoch, id_).random() for epoch in range(40) for id_ in range(50)])
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / len(draws) ** 0.5
    assert abs(draws.mean() - 0.5) < 4 * (1 / 12 / len(draws)) ** 0.5


def test_uniform_covers_its_range_evenly():
    draws = np.array([uniform(0, "u", id_) for id_ in range(4000)], dtype=np.float64) / 2**63
    counts = np.histogram(draws, bins=16, range=(0, 1))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 15 + 4 * 30**0.5
    assert counts.sum() == 4000


def test_no_global_generator_is_read_or_moved():
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    one = key(3, "x").tolist(), rng(3, "x").random(), uniform(3, "x")
    random.seed(2)
    np.random.seed(2)
    assert (key(3, "x").tolist(), rng(3, "x").random(), uniform(3, "x")) == one
    random.seed(1)
    np.random.seed(1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_another_process_draws_the_same(hash_seed):
    program = "from penstock.seeds import key; print(key(42, 'order', 1).tolist())"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(FROZEN['key(42, "order", 1)'])
