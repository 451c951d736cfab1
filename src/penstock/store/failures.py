"""What a client's words for a failure mean: whether it may pass, and what a reader wants to know of it.

text of an error ──▶ reason_of: one line without secrets ──▶ of_status: an error of ours, or Transient
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from penstock.errors import AccessDenied, ObjectMissing, StoreError
from penstock.store.probe import NO_TLS, UNTRUSTED
from penstock.store.requests import Transient
from penstock.store.urls import redact

CREDENTIALS = {
    "s3": "Give access_key_id and secret_access_key as storage options or AWS_* variables, or skip_signature=True",
    "gs": "Give service_account_path as a storage option, or GOOGLE_APPLICATIONCREDENTIALS, or skip_signature=True",
    "az": "Give account_name and account_key or sas_key as storage options or AZURE_* variables",
    "http": "Give headers={'Authorization': …} as a storage option",
    "https": "Give headers={'Authorization': …} as a storage option",
}
"""What to give where one may not read."""
_PROVIDER = re.compile(r"External \w+ credential provider: (\w+)")
_REASONS = (
    ("dns error", "the host is not known"),
    ("Connection refused", "the connection was refused"),
    ("IncompleteBody", "the connection ended in the middle of the body"),
    ("kind: Interrupted", "the connection ended in the middle of the body"),
    ("kind: Timeout", "no answer within the time-out"),
    ("TimedOut", "no answer within the time-out"),
    ("InvalidCertificate", UNTRUSTED),
    ("InvalidContentType", NO_TLS),
    ("AlertReceived", "the server and this client agree on no way to do TLS"),
    ("PeerIncompatible", "the server and this client agree on no way to do TLS"),
    ("tls handshake eof", "the connection ended in the TLS handshake"),
)
_FINAL = re.compile(r"InvalidCertificate|InvalidContentType|AlertReceived|PeerIncompatible")
_NO_LENGTH = "the server does not say how long it is, as of a page that it makes while it sends it: only files are read"


class WrongRegion(StoreError):
    """The bucket is elsewhere.

    Args:
        region: where; None if the server did not say.
    """

    def __init__(self, region: str | None) -> None:
        where = f"the bucket is in {region}" if region else "the bucket is elsewhere"
        super().__init__(
            f"{where}, not in the region or at the endpoint that was asked: give region= (and endpoint=) of the bucket"
        )
        self.region = region


class BucketMissing(ObjectMissing):
    """Not the object is missing but what should hold it."""


class AbortFailed(Transient):
    """What an upload had sent could not be thrown away; of why it was to be, the client says nothing."""


class RedirectedInCircles(StoreError):
    """Its redirects lead nowhere."""


class RangesIgnored(StoreError):
    """The server sends the whole object, whatever range is asked for."""


class OutsideObject(StoreError):
    """The range begins where the object has no bytes; an empty object has none anywhere."""


def ended_early(what: str, start: int, stop: int, length: int) -> StoreError:
    """Say that an object has not the bytes that were asked for."""
    return StoreError(f"{what} failed: bytes {start:,} to {stop:,} were asked for, but it ends at {start + length:,}")


def is_of_abort(text: str) -> bool:
    """Tell whether a request failed that was to throw away what an upload had sent; nothing else is removed."""
    return "Error performing DELETE" in text


def of_status(text: str, reason: str) -> Exception:
    """Say in our terms what a failure is that a server gave a status for, or that came before any."""
    if "TooManyRedirects" in text:
        return RedirectedInCircles("it is redirected without end")
    if "MissingContentLength" in text:
        return StoreError(_NO_LENGTH)
    if _FINAL.search(text):
        return StoreError(reason)
    status = re.search(r"status code: (\d{3})", text)
    if status is None:
        # Memory's own way to say 416.
        return OutsideObject(reason) if "Wanted range starting at" in text else Transient(reason)
    code = int(status[1])
    if code in (401, 403):
        return AccessDenied(reason)
    if code == 416:
        return OutsideObject(reason)
    passes = code >= 500 or code in (408, 425, 429)
    return Transient(reason, code) if passes else StoreError(reason)


def reason_of(text: str) -> str:
    """Pick what a reader wants to know from an error of obstore."""
    provider = _PROVIDER.search(text)
    if provider:
        # Not what the function said, which may hold what it was to give.
        return f"the credential_provider failed ({provider[1]}): call it by hand to see why"
    status = re.search(r"status code: (\d{3} [^:\n]*)", text)
    if status:
        code = re.search(r"<Code>(\w+)</Code>", text)
        return f"the server says {status[1].strip()}" + (f" ({code[1]})" if code else "")
    return next((words for sign, words in _REASONS if sign in text), first_line(text))


def first_line(error: object) -> str:
    """Give the first line of an error without what may be secret."""
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    return redact(next((line for line in lines if line), "unknown error"))[:300]
