"""What is in a store is found, all of it and once, however it is laid out and whatever goes wrong on the way."""

from __future__ import annotations

import http.server
import threading
from functools import partial

import pytest

from penstock.errors import AccessDenied, ConfigError, StoreError, StoreUnavailable
from penstock.store.store import open_store
from penstock.store.web_listing import read_listing

FILES = {
    "x.bin": b"x" * 12_345,
    "empty.bin": b"",
    "a b/ü #1 + 100%25.bin": b"odd",
    "a b/deep/er/y.bin": b"y" * 10,
    "sub/z.csv": b"a,b\n1,2\n",
    "sub/page.html": b"<a href='nowhere'>no file</a>",
}
SIZES = {name: len(data) for name, data in FILES.items()}


def found(store, prefix=""):
    infos = list(store.list(prefix))
    assert len({info.path for info in infos}) == len(infos)
    return {info.path: info.size for info in infos}


@pytest.mark.parametrize("place", ["", "json", "rounded"])
def test_the_folders_of_nginx_are_listed_with_exact_sizes(nginx, place):
    nginx.add_files(FILES)
    store = open_store(f"{nginx.url}/{place}")
    assert found(store) == SIZES
    assert found(store, "a b/deep") == {"a b/deep/er/y.bin": 10}
    assert all(info.last_modified for info in store.list())
    for name, data in FILES.items():
        assert store.get(name) == data


def test_a_web_server_that_does_not_show_its_folders_is_said_to(nginx):
    nginx.add_files(FILES)
    with pytest.raises(ConfigError, match=r"/closed is on a web server.*no listing of it \(it says 403\).*autoindex"):
        list(open_store(f"{nginx.url}/closed").list())
    with pytest.raises(ConfigError, match=r"x\.bin is on a web server, which has no listing"):
        list(open_store(nginx.url).list("x.bin"))
    nginx.add_files({"home/index.html": b"<h1>Welcome</h1><a href='x.bin'>x</a>"})
    with pytest.raises(ConfigError, match=r"home is on a web server.*its page is no list of files"):
        list(open_store(f"{nginx.url}/home").list())


def test_a_listing_behind_a_password_takes_it_from_the_url_and_does_not_show_it(nginx):
    nginx.add_files(FILES)
    with_login = nginx.url.replace("://", "://me:s3cr3t@")
    assert found(open_store(f"{with_login}/private")) == SIZES
    with pytest.raises(AccessDenied, match=r"private may not be read: the server says 401.*headers") as caught:
        list(open_store(f"{nginx.url}/private").list())
    assert "s3cr3t" not in str(caught.value)


def test_pythons_own_server_is_listed_too(tmp_path):
    folder = tmp_path / "files"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            assert found(open_store(f"http://127.0.0.1:{server.server_port}")) == SIZES
        finally:
            server.shutdown()
            thread.join()


CADDY = b"""[{"name": "x.bin", "size": 3, "url": "./x.bin", "mod_time": "2026-01-02T03:04:05Z", "is_dir": false},
    {"name": "sub/", "size": 9, "is_dir": true}]"""
APACHE = b"""<html><head><title>Index of /f</title></head><body><h1>Index of /f</h1>
    <table><tr><th><a href="?C=N;O=D">Name</a></th></tr>
    <tr><td><a href="/">Parent Directory</a></td><td>&nbsp;</td><td align="right">  - </td></tr>
    <tr><td><a href="sub/">sub/</a></td><td align="right">2026-01-02 03:04  </td><td align="right">  - </td></tr>
    <tr><td><a href="x.bin">x.bin</a></td><td align="right">2026-01-02 03:04  </td><td>  3 </td></tr>
    <tr><td><a href="https://elsewhere.invalid/f/other.bin">other</a></td></tr>
    <tr><td><a href="../../climb.bin">climb</a></td></tr><tr><td><a href="..%2Fclimb.bin">climb</a></td></tr>
    </table></body></html>"""
HOSTILE = b"""[{"name": "x.bin", "type": "file", "size": 3}, {"name": "../../etc", "type": "directory"},
    {"name": "sub", "type": "directory"}, {"name": "a\\u0000b", "type": "file", "size": 1}]"""
INSIDE = b"<title>Index of /f/sub</title><a href='../'>up</a><a href='y.bin'>y</a>"
PAGES = {
    "caddy": ("application/json", CADDY, b"[]", {}),
    "apache": ("text/html;charset=UTF-8", APACHE, INSIDE, {"sub/y.bin": 4}),
    "hostile": ("application/json", HOSTILE, b"null", {}),
}


@pytest.mark.parametrize("kind", PAGES)
def test_pages_of_other_servers_are_read_and_lead_nowhere_else(web, kind):
    content_type, page, inside, below = PAGES[kind]
    web.add_files({"f/index": page, "f/x.bin": b"xyz", "f/sub/index": inside, "f/sub/y.bin": b"four"})
    headers = {"Content-Type": content_type}
    web.fault(path="^/f/$", times=9, headers=headers, serve="/f/index")
    web.fault(path="^/f/sub/$", times=9, headers=headers, serve="/f/sub/index")
    assert found(open_store(f"{web.url}/f")) == {"x.bin": 3, **below}
    assert not [line for line in web.requests() if not line["path"].startswith("/f/")]


@pytest.mark.parametrize("url", ["http://host/f/", "http://host:80/f/", "http://me:pw@host/f/"])
def test_links_of_a_page_that_say_the_port_or_not_are_of_its_server(url):
    page = b"""<title>Index of /f</title><a href="http://host:80/f/a.bin">a</a> <a href="http://host/f/b.bin">b</a>
        <a href="http://host:81/f/c.bin">c</a> <a href="http://[host/f/d.bin">d</a> <a href="https://host/f/e.bin">e</a>"""
    assert [one.name for one in read_listing(url, "text/html", page)] == ["a.bin", "b.bin"]


def test_a_server_that_fails_while_it_is_listed_is_asked_again(web):
    page = b"<h1>Index of /</h1><a href='x.bin'>x.bin</a> 02-Jan-2026 03:04 3\n"
    web.add_files({"index": page})
    headers = {"Content-Type": "text/html"}
    web.fault(path="^/$", times=2, status=503)
    web.fault(path="^/$", times=1, headers=headers, serve="/index", truncate=10)
    web.fault(path="^/$", times=1, headers=headers, serve="/index")
    assert found(open_store(web.url)) == {"x.bin": 3}
    web.fault(path="^/$", times=99, delay_s=60)
    with pytest.raises(StoreUnavailable, match=r"LIST http://.* failed after 2 attempts .* no answer within"):
        list(open_store(web.url, timeout_s=0.3, retries=1).list())


WEBDAV = """<?xml version="1.0"?><D:multistatus xmlns:D="DAV:">
    <D:response><D:href>/d/</D:href><D:propstat><D:prop>
        <D:getlastmodified>Fri, 02 Jan 2026 03:04:05 GMT</D:getlastmodified>
        <D:resourcetype><D:collection/></D:resourcetype>
    </D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>
    <D:response><D:href>/d/a%20b/x.bin</D:href><D:propstat><D:prop>
        <D:getlastmodified>Fri, 02 Jan 2026 03:04:05 GMT</D:getlastmodified>
        <D:getcontentlength>3</D:getcontentlength><D:getetag>"1"</D:getetag><D:resourcetype/>
    </D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>"""


def test_a_folder_without_a_page_is_listed_by_webdav_where_the_server_speaks_it(web):
    web.fault(path="^/d", method="PROPFIND", times=9, status=207, body=WEBDAV)
    assert found(open_store(f"{web.url}/d")) == {"a b/x.bin": 3}
    assert [line["method"] for line in web.requests("^/d")] == ["GET", "PROPFIND"]


def test_folders_that_lead_back_to_themselves_end(web):
    web.add_files({"index": b"<h1>Index of /</h1><a href='again/'>again/</a>"})
    web.fault(path="/$", times=999, headers={"Content-Type": "text/html"}, serve="/index")
    with pytest.raises(StoreError, match="a link among them seems to lead back up"):
        list(open_store(web.url).list())


@pytest.mark.parametrize(
    "names",
    [
        [f"flat/{number:05d}" for number in range(1100)],
        [f"top/only/{number % 30:02d}/{number:05d}" for number in range(1100)],
        [*(f"few/{number:05d}" for number in range(1050)), *(f"few/a/{n}" for n in range(30)), "few/b/c/d", "z"],
    ],
    ids=["flat", "folders", "mixed"],
)
def test_a_bucket_of_many_pages_is_listed_whole(s3, names, tmp_path):
    bucket = tmp_path.name.replace("_", "-").lower()
    s3.create_bucket(bucket)
    s3.put_many(bucket, names)
    assert found(open_store(f"s3://{bucket}", **s3.options)) == dict.fromkeys(names, 1)
    base = names[0].partition("/")[0]
    below = {name.partition("/")[2] for name in names if name.startswith(f"{base}/")}
    assert set(found(open_store(f"s3://{bucket}/{base}", **s3.options))) == below


def test_a_page_of_a_listing_that_fails_is_asked_for_again_and_not_taken_for_the_end(web):
    page = b"""<?xml version="1.0"?><EnumerationResults ContainerName="c"><Blobs><Blob><Name>x</Name><Properties>
        <Last-Modified>Fri, 02 Jan 2026 03:04:05 GMT</Last-Modified><Content-Length>3</Content-Length>
        <Content-Type>text/plain</Content-Type><Etag>0x1</Etag></Properties></Blob></Blobs><NextMarker/>
        </EnumerationResults>"""
    web.add_files({"page": page})
    web.fault(path="comp=list", times=2, status=503)
    web.fault(path="comp=list", times=1, headers={"Content-Type": "application/xml"}, serve="/page")
    store = open_store("az://c", endpoint=web.url, account_name="a", account_key="a2V5")
    assert found(store) == {"x": 3}
