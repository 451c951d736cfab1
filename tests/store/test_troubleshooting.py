"""Each message in the guide to troubleshooting is one that a store gives, and what the guide advises helps."""

from __future__ import annotations

import datetime
import ipaddress
import re
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.errors import PenstockError
from penstock.store.store import open_store

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "troubleshooting_stores.md"
# What stands behind code is what the code prints.
PRINTED = re.compile(r"^```python\n.*?^```\n(\n```text\n.*?^```\n)?", re.MULTILINE | re.DOTALL)
TEXT = PRINTED.sub("", GUIDE.read_text(encoding="utf-8"))
MESSAGES = {
    section.partition("\n")[0]: re.findall(r"^```text\n(.*?)\n```$", section, re.MULTILINE | re.DOTALL)
    for section in re.split(r"^##? ", TEXT, flags=re.MULTILINE)
}
NOBODY = "http://127.0.0.1:9"
QUICK = {"retries": 0, "timeout_s": 2}
KEYS = {"access_key_id": "k", "secret_access_key": "s", "region": "us-east-1"}
MALFORMED = (
    "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; expecting 'eu-west-1'"
    "</Message><Region>eu-west-1</Region></Error>"
)
EXPIRED = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
DENIED = "<Error><Code>AccessDenied</Code></Error>"


def said(url, path="x.bin", **options):
    with pytest.raises(PenstockError) as caught:
        open_store(url, **{**QUICK, **options}).get(path)
    return str(caught.value)


def listed(url, **options):
    with pytest.raises(PenstockError) as caught:
        list(open_store(url, **{**QUICK, **options}).list())
    return str(caught.value)


def fits(message, said):
    """Tell whether what was said is a message of the guide, where … stands for what differs."""
    parts = [re.escape(part) for part in " ".join(message.split()).split("…")]
    return re.fullmatch(".*?".join(parts), said) is not None


@contextmanager
def section(heading):
    """Look up in a section of the guide what stores say; in the end all that stands there was said."""
    left = set(MESSAGES[heading])

    def check(said):
        found = [message for message in MESSAGES[heading] if fits(message, said)]
        assert found, said
        left.difference_update(found)

    yield check
    assert not left


@pytest.fixture(autouse=True)
def no_accounts(monkeypatch):
    """What this machine may know of clouds is not part of the story."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)


def test_amazon(web, s3):
    with section("Amazon S3, and what speaks like it") as check:
        check(said("s3://bucket", region="us-east-1"))
        web.fault(times=9, status=403, body=DENIED)
        check(said("s3://bucket", endpoint=web.url, **KEYS))
        web.heal()
        web.fault(times=9, status=403, body=EXPIRED)
        check(said("s3://bucket", endpoint=web.url, **KEYS))
        web.heal()
        web.fault(times=9, status=400, body=MALFORMED)
        check(said("s3://bucket", endpoint=web.url, **KEYS))
        web.heal()
        web.fault(times=9, status=301)
        check(said("s3://bucket", endpoint=web.url, **KEYS))
        check(said("s3://no-such-bucket", **s3.options))
        s3.create_bucket("there")
        check(said("s3://there", **s3.options))
        check(said("s3://bucket", endpoint=NOBODY, **KEYS))
        check(said("s3://bucket", endpoint="127.0.0.1:9000", **KEYS))
        check(said("s3://bucket", endpoint="http://nowhere.invalid", **KEYS))


def test_azure(azure):
    with section("Azure") as check:
        check(said("az://data", account_key="a2V5"))
        check(said("az://data", **{**azure.options, "account_key": "d3Jvbmc="}))
        check(said("az://no-such-container", **azure.options))


def test_google(gcs):
    with section("Google Cloud Storage") as check:
        check(said("gs://data", service_account_path="/no/such/file.json"))
        check(said("gs://no-such-bucket", **gcs.options))


def test_the_web(web, nginx, certificate, tmp_path):
    with section("Web servers") as check:
        nginx.add_files({"a/x.bin": b"x"})
        check(said(f"{nginx.url}/private"))
        assert open_store(f"{nginx.url.replace('://', '://me:s3cr3t@')}/private").get("a/x.bin") == b"x"
        check(said(f"{nginx.url}/a", "y.bin"))
        check(listed(f"{nginx.url}/closed"))
        check(said(nginx.url.replace("http:", "https:"), retries=6))
        check(listed(f"{nginx.url.replace('http:', 'https:')}/a", retries=6))
        web.add_files({"x.bin": b"x" * 100})
        web.fault(times=9, ignore_range=True)
        with pytest.raises(PenstockError) as caught:
            open_store(web.url).get_range("x.bin", 5, 10)
        check(str(caught.value))
        web.heal()
        web.fault(times=99, delay_s=60)
        check(said(web.url, timeout_s=0.3))
        web.heal()
        web.fault(times=99, status=503, headers={"Retry-After": "3600"})
        check(said(web.url, retries=6))
        web.heal()
        web.fault(times=99, truncate=10)
        check(said(web.url))
        secure_server(check, certificate, tmp_path / "secure")


def secure_server(check, certificate, folder):
    """Tell what a server is refused for whose certificate nobody has signed, and that it need not be."""
    from servers.http_process import Web

    secure = Web(folder, certificate=certificate)
    try:
        secure.add_files({"x.bin": b"x"})
        check(said(secure.url, retries=6))
        signed = "".join(certificate.read_text().partition("-----BEGIN CERT")[1:])
        assert open_store(secure.url, client_options={"root_certificate": signed}).get("x.bin") == b"x"
    finally:
        secure.kill()


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that nobody has signed, with its key."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    dated = built.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    place = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = dated.add_extension(place, critical=False).sign(key, hashes.SHA256())
    path = tmp_path / "certificate.pem"
    kept = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(kept + signed.public_bytes(serialization.Encoding.PEM))
    return path


def test_the_hub(hub):
    with section("The Hub") as check:
        hub.add_dataset("org/gated", {"x.bin": b"x"}, gated=True)
        check(said("hf://org/gated"))
        check(said("hf://org/nothing"))
        check(said("hf://org/gated", token="hf_wrong"))


def test_drivers(ftp):
    with section("Everything else") as check:
        check(said(ftp.url.replace("s3cr3t", "wrong")))
        check(said("smb://host/share"))
        check(said("s4://bucket"))


def test_options_that_do_not_exist():
    with section("When a store says no") as check:
        check(said("s3://bucket", acess_key_id="k"))
