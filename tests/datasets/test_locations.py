"""From rows to objects: what a location may be, where a relative one leads, and what is refused."""

from __future__ import annotations

import pytest

from penstock import ConfigError, FormatError
from penstock.datasets.locations import Download, Locations, read_downloads
from penstock.store.wanted import Wanted

IMAGE = read_downloads(["image"])
PART = read_downloads([{"column": "shard", "offset": "start", "length": "size", "name": "jpg"}])


def resolved(location, base="s3://bucket/sets/cats"):
    (place,) = Locations(IMAGE, base).wanted({"image": location})
    return place if isinstance(place, str) else place.url


@pytest.mark.parametrize(
    ("location", "base", "url"),
    [
        ("a/1.jpg", "s3://bucket/sets/cats", "s3://bucket/sets/cats/a/1.jpg"),
        ("a/1.jpg", "s3://bucket/sets/cats/", "s3://bucket/sets/cats/a/1.jpg"),
        ("a/1.jpg", "/data/cats", "/data/cats/a/1.jpg"),
        ("../dogs/1.jpg", "s3://bucket/sets/cats", "s3://bucket/sets/dogs/1.jpg"),
        ("./a/../1.jpg", "https://host/sets", "https://host/sets/1.jpg"),
        ("../dogs/1.jpg", "/data/cats", "/data/dogs/1.jpg"),
        ("1..jpg", "s3://bucket/cats", "s3://bucket/cats/1..jpg"),
        ("1.jpg", "https://host/sets?sig=abc", "https://host/sets/1.jpg?sig=abc"),
        ("s3://other/1.jpg", "s3://bucket/cats", "s3://other/1.jpg"),
        ("s3://other/1.jpg", None, "s3://other/1.jpg"),
        ("/mnt-data/1.jpg", "s3://bucket/cats", "/mnt-data/1.jpg"),
    ],
)
def test_a_location_is_a_url_a_path_or_relative_to_the_index(location, base, url):
    assert resolved(location, base) == url


@pytest.mark.parametrize("location", ["", "a\0b.jpg", 17, b"a.jpg", ["a.jpg"]])
def test_what_is_no_location_is_refused_by_column_and_value(location):
    with pytest.raises(FormatError, match="column 'image' holds"):
        resolved(location)


@pytest.mark.parametrize("base", ["s3://bucket", "https://host/sets", "/"])
def test_a_relative_location_does_not_leave_its_bucket_or_host(base):
    with pytest.raises(FormatError, match="leaves"):
        resolved("../../x/../../secret", base)


@pytest.mark.parametrize("url", ["gopher://host/x", "s3:///x", "hf://nobody"])
def test_a_url_that_no_store_serves_is_refused(url):
    with pytest.raises(FormatError, match=r"column 'image' holds .*, which is no location"):
        resolved(url)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        (" https://host/1.jpg", "before the URL: take it out of the table"),
        ("\ts3://bucket/1.jpg", "before the URL"),
        ("\nfile:///data/1.jpg", "before the URL"),
        ("\u00a0hf://datasets/org/name/1.jpg", "before the URL"),
        ("https://host/1.jpg ", "behind the URL: take it out of the table"),
        ("HTTP://host/1.jpg\n", "behind the URL"),
        ("https://host/1.jpg?size=3\t", "behind the URL"),
        ("images/a://1.jpg", "does not begin as a URL does"),
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_a_blank_around_a_url_is_told_as_that(location, said, local):
    locations = Locations(IMAGE, "s3://bucket", local=local)
    locations.wanted({"image": "https://host/2.jpg"})
    with pytest.raises(FormatError, match=f"column 'image' holds .*, which is no location: .*{said}"):
        locations.wanted({"image": location})


@pytest.mark.parametrize("location", ["a b.jpg", " 1.jpg", "1.jpg ", "s3://bucket/1.jpg ", "/data/a://1.jpg"])
def test_blanks_that_may_be_of_a_name_are_left_in_it(location):
    url = resolved(location, "/data")
    assert url == (location if "://" in location else f"/data/{location}")


@pytest.mark.parametrize(
    "location", ["cats/", "../cats/", "../../", "s3://bucket/cats/", "hf://org/name/cats/", "/data/cats/"]
)
def test_a_folder_is_no_location_of_a_sample(location):
    with pytest.raises(FormatError, match='it ends in "/", which names a folder: name its objects'):
        resolved(location)


@pytest.mark.parametrize("location", ["s3://bucket", "gs://bucket", "hf://org/name"])
def test_a_whole_bucket_is_no_location_of_a_sample(location):
    with pytest.raises(FormatError, match="it names no object in it"):
        resolved(location)


def test_a_page_of_a_web_server_may_end_in_a_slash():
    assert resolved("https://host/pages/") == "https://host/pages/"
    assert resolved("pages/", "https://host") == "https://host/pages/"


def test_a_relative_location_without_a_folder_says_so():
    with pytest.raises(FormatError, match="give whole URLs or paths"):
        resolved("a/1.jpg", None)


def test_a_refused_location_shows_no_secret():
    with pytest.raises(FormatError) as caught:
        resolved("https://me:hunter2@host/x\0?sig=abc")
    assert "hunter2" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_local_file_is_named_by_its_path_alone():
    for location in ("cats/a b.jpg", "/data/cats/a b.jpg", "file:///data/cats/a%20b.jpg"):
        assert Locations(IMAGE, "/data").wanted({"image": location}) == ["/data/cats/a b.jpg"]


def test_a_row_without_a_location_wants_nothing():
    assert Locations(IMAGE, "/data").wanted({"image": None}) == [None]
    assert Locations(IMAGE, "/data").wanted({}) == [None]


def test_a_part_may_be_empty():
    found = Locations(PART, "s3://bucket").wanted({"shard": "0.tar", "start": 512, "size": 0})
    assert found == [Wanted("s3://bucket/0.tar", 512, 512)]


def test_a_part_of_an_object_is_named_by_two_more_columns():
    found = Locations(PART, "s3://bucket").wanted({"shard": "0.tar", "start": 512, "size": 100})
    assert found == [Wanted("s3://bucket/0.tar", 512, 612)]
    assert Locations(PART, "s3://bucket").wanted({"shard": None, "start": 512, "size": 100}) == [None]


@pytest.mark.parametrize(
    ("start", "size"),
    [(-1, 10), (0, -1), (None, 10), (5, None), ("x", 10), (float("nan"), 10), (0, float("inf")), (5, 2**63)],
)
def test_a_part_that_cannot_be_is_refused(start, size):
    with pytest.raises(FormatError, match="'start' and 'size' hold"):
        Locations(PART, "s3://bucket").wanted({"shard": "0.tar", "start": start, "size": size})


def test_an_index_that_knows_the_bytes_says_so_beside_the_column():
    (plain,) = IMAGE
    assert plain.beside(["image"]) == plain
    assert plain.beside(["image", "image__offset", "image__length"]) == Download(
        name="image", column="image", offset="image__offset", length="image__length", suffix=".image"
    )
    sized = plain.beside(["image", "image__length"])
    assert Locations([sized], "s3://b").wanted({"image": "x", "image__length": 7}) == [Wanted("s3://b/x", size=7)]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("image", "must be a list"),
        ({"column": "image"}, "must be a list"),
        ([7], "must be a column's name"),
        ([{"column": 7}], "must be a column's name"),
        ([{"col": "image"}], "has col; known are"),
        ([{"offset": "a", "length": "b"}], "needs 'column'"),
        ([{"column": "shard", "offset": "a"}], "both or neither"),
        (["image", "image"], "'image' more than once"),
        ([{"column": "s", "offset": "a", "length": "b"}, {"column": "s", "offset": "c", "length": "d"}], "of its own"),
    ],
)
def test_a_wrong_list_of_columns_is_refused(given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read_downloads(given)
