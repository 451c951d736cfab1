"""Searching the Hub: public datasets only, the most downloaded first, narrowed by kind."""

from __future__ import annotations

import pytest

from penstock import search_datasets, training_support
from penstock.errors import AccessDenied, ConfigError, StoreUnavailable
from penstock.prep.search import MODALITIES, modality_tag


@pytest.fixture
def stocked(hub):
    """150 public datasets of which every third is also of audio, and some that nobody may see."""
    for number in range(150):
        tags = ("modality:text", "modality:audio") if number % 3 == 0 else ("modality:text",)
        hub.add_dataset(f"org/stories-{number:03}", {}, tags=tags, downloads=number * 10, likes=number)
    hub.add_dataset("org/private-stories", {}, private=True, downloads=10**6, readers=("hf_owner",))
    for number in range(40):
        hub.add_dataset(f"org/gated-stories-{number}", {}, gated="auto", downloads=10**6)
    hub.add_dataset("other/poems", {}, tags=("modality:3d",), description="  Poems\n in  space ")
    return hub


def test_the_most_downloaded_public_datasets_are_found(stocked):
    found = search_datasets("Stories")
    assert [one.name for one in found] == [f"org/stories-{number:03}" for number in range(149, 99, -1)]
    assert found[0].downloads == 1490
    assert found[0].url == f"{stocked.url}/datasets/org/stories-149"


def test_a_limit_beyond_a_page_is_met_by_following_pages(stocked):
    assert len(search_datasets("stories", limit=140)) == 140
    assert len(search_datasets("stories", limit=1000)) == 150


def test_private_datasets_stay_out_even_for_their_owner(stocked, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_owner")
    assert search_datasets("private") == []
    assert stocked.requests("/api/datasets")[-1]["auth"]


def test_a_modality_narrows_the_search(stocked):
    audio = search_datasets("stories", modality="Audio")
    assert [one.name for one in audio][:2] == ["org/stories-147", "org/stories-144"]
    assert all("Audio" in one.modalities for one in audio)
    assert [one.name for one in search_datasets("", modality="3d")] == ["other/poems"]
    assert search_datasets("poems")[0].description == "Poems in space"
    assert search_datasets("no such thing") == []


def test_every_modality_has_the_tag_of_the_hub():
    tags = {name: modality_tag(name) for name in MODALITIES}
    assert tags.pop("All") is None
    assert tags.pop("Time-series") == "modality:timeseries"
    assert tags == {name: f"modality:{name.lower()}" for name in tags}
    assert len(tags) == 8


def test_what_can_be_trained_on_is_said():
    assert {name for name in MODALITIES if training_support(name).ready} == {"All", "Text", "Audio", "Image", "Video"}
    assert "extracted" in training_support("document").note
    assert training_support("Tabular").note == "not yet"


def test_what_cannot_be_searched_for_is_refused():
    with pytest.raises(ConfigError, match=r"modality must be one of All, Text, .*; got 'Smell'"):
        search_datasets("x", modality="Smell")
    with pytest.raises(ConfigError, match="limit must be an integer >= 1, got 0"):
        search_datasets("x", limit=0)


def test_a_hub_in_trouble_is_asked_again(hub):
    hub.add_dataset("org/name", {})
    hub.fault(path="/api/datasets", status=503, times=2)
    assert len(search_datasets("name")) == 1
    assert [line["status"] for line in hub.requests("/api/datasets")] == [503, 503, 200]


def test_a_hub_that_asks_to_wait_is_not_asked_before(hub):
    hub.fault(path="/api/datasets", status=429, headers={"Retry-After": "1"})
    assert search_datasets("name") == []
    first, second = hub.requests("/api/datasets")
    assert second["start"] - first["end"] >= 1.0


def test_a_token_that_is_not_valid_is_named(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AccessDenied, match="HF_TOKEN") as caught:
        search_datasets("name")
    assert "hf_wrong" not in str(caught.value)


@pytest.mark.slow
def test_no_network_is_said_after_trying_again(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"7 attempts in .* refused.*Check the network"):
        search_datasets("name")
