"""The Hugging Face Hub: where its files are, what is in a dataset, and why it refuses.

The one file that knows huggingface_hub, which finds tokens and speaks to the Hub's API. Files are read
through the same client as any web server's, from the Hub's `resolve` URLs: that is one request a range,
and the token stays with the Hub when it redirects to another host. HF_ENDPOINT and HF_TOKEN are read
whenever a store is opened. A store of the Hub is one commit: a branch is looked up once, at first use.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from urllib.parse import quote, urlencode

from penstock.errors import AccessDenied, BadManifest, ConfigError, ObjectMissing, StoreError
from penstock.store.probe import Answer
from penstock.store.requests import Patience, Transient, Tries
from penstock.store.urls import Place

ENDPOINT = "https://huggingface.co"
COMMIT = re.compile(r"[0-9a-f]{40}")
_PASSES = (408, 425, 429)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubAccess:
    """How to reach one dataset: the Hub, and who asks."""

    endpoint: str
    repo: str
    """ORG/NAME; empty for a search, which is of no dataset."""
    revision: str
    """A branch, a tag, a pull request's ref or a commit."""
    token: str | None = field(repr=False)
    timeout_s: float
    patience: Patience

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, whose files never change."""
        return COMMIT.fullmatch(self.revision) is not None

    @property
    def headers(self) -> dict[str, str]:
        """What says who asks."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def page(self) -> str:
        """Where a person finds the dataset."""
        return f"{self.endpoint}/datasets/{self.repo}".rstrip("/")

    def files_at(self, key: str) -> Place:
        """Give the place of a file or folder on the Hub's web server."""
        scheme = self.endpoint.partition("://")[0]
        below = f"datasets/{self.repo}/resolve/{self.revision}"
        return Place(scheme=scheme, root=f"{self.endpoint}/", key=f"{below}/{key}" if key else below)


def hub_endpoint(endpoint: str | None = None) -> str:
    """Give the Hub to use: the one given, else HF_ENDPOINT, else the public one.

    Raises:
        ConfigError: it is no http(s) URL.
    """
    found = (endpoint or os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")
    if not found.startswith(("http://", "https://")):
        raise ConfigError(f"the Hub's endpoint must be an http(s) URL, got {found!r}: check HF_ENDPOINT")
    return found


def hub_token(token: str | bool | None = None) -> str | None:
    """Give the token to use: the one given, else HF_TOKEN, else that of `hf auth login`; False means none."""
    if isinstance(token, str) and token:
        return token
    if token is False:
        return None
    return os.environ.get("HF_TOKEN", "").strip() or _package().get_token()


def hub_access(
    place: Place,
    *,
    endpoint: str | None = None,
    token: str | bool | None = None,
    timeout_s: float = 30.0,
    patience: Patience | None = None,
) -> HubAccess:
    """Say how to reach the dataset that an `hf://` place names."""
    repo, _, revision = place.root.removeprefix("hf://datasets/").partition("@")
    return HubAccess(
        endpoint=hub_endpoint(endpoint),
        repo=repo,
        revision=revision,
        token=hub_token(token),
        timeout_s=timeout_s,
        patience=patience or Patience(),
    )


def hub_commit(access: HubAccess) -> str:
    """Look up the commit of a revision; a commit is its own.

    Raises:
        ObjectMissing: no such dataset or revision; or it is private and the token may not read it.
        AccessDenied: the Hub refuses the token.
        StoreUnavailable: the Hub can't be reached.
    """
    if access.pinned:
        return access.revision
    path = f"/api/datasets/{access.repo}/revision/{quote(access.revision, safe='')}"
    return str(next(_pages(access, path, {}))["sha"])


def hub_tree(access: HubAccess, folder: str = "") -> Iterator[tuple[str, int, str]]:
    """List all files of a revision below a folder: path, size in bytes, and what identifies the content.

    Raises:
        As `hub_commit`; ObjectMissing also for the folder.
    """
    path = f"/api/datasets/{access.repo}/tree/{quote(access.revision, safe='')}"
    if folder:
        path += f"/{quote(folder)}"
    for page in _pages(access, path, {"recursive": "true", "expand": "false"}):
        for entry in page:
            if entry["type"] == "file":
                yield entry["path"], entry["size"], (entry.get("lfs") or entry)["oid"]


def hub_search(
    query: Mapping[str, Any], *, endpoint: str | None = None, token: str | bool | None = None
) -> Iterator[dict[str, Any]]:
    """Go through the datasets that the Hub finds for a query of its API, in its order, page by page.

    Raises:
        AccessDenied, StoreUnavailable: see `hub_commit`.
    """
    access = HubAccess(
        endpoint=hub_endpoint(endpoint),
        repo="",
        revision="main",
        token=hub_token(token),
        timeout_s=30.0,
        patience=Patience(),
    )
    for page in _pages(access, "/api/datasets", query):
        yield from page


def card_metadata(text: str) -> dict[str, Any]:
    """Give the YAML at the head of a dataset card; {} where there is none.

    Raises:
        BadManifest: there is a head, and it is not YAML.
    """
    if not text.lstrip().startswith("---"):
        return {}
    card: Any = _package().DatasetCard
    try:
        return dict(card(text, ignore_metadata_errors=True).data.to_dict())
    except Exception as error:
        raise BadManifest(f"the head of the dataset's card is not YAML: {error}") from error


def file_facts(answer: Answer) -> tuple[int, str | None, str | None]:
    """Give a file's size, content id and commit, as the Hub's headers say it."""
    headers = answer.headers
    etag = headers.get("x-linked-etag") or headers.get("etag")
    size = headers.get("x-linked-size") or headers.get("content-length") or "0"
    return int(size), etag.removeprefix("W/").strip('"') if etag else None, headers.get("x-repo-commit")


def refusal(access: HubAccess, what: str, status: int, code: str, message: str) -> StoreError:
    """Say why the Hub refuses, and what to do.

    Args:
        access: the dataset, and who asked.
        what: the file or request, in words.
        status: HTTP status.
        code: the Hub's X-Error-Code.
        message: its X-Error-Message, or what else is known.
    """
    name = f"the dataset {access.repo}"
    if code == "GatedRepo":
        login = "HF_TOKEN's account has no access to it" if access.token else "no token was given; set HF_TOKEN"
        return AccessDenied(f"{what}: {name} is gated, and {login}. Ask for access at {access.page}")
    if code == "EntryNotFound":
        return ObjectMissing(f"{what} does not exist in {name} at revision {access.revision}")
    if code == "RevisionNotFound":
        return ObjectMissing(f"{what}: {name} has no revision {access.revision}; see {access.page}")
    if code == "RepoNotFound" or (status == 404 and not code):
        hint = "the token may not read it" if access.token else "it is private and needs HF_TOKEN"
        return ObjectMissing(f"{what}: {name} does not exist on {access.endpoint}, or {hint}; check its name")
    if status in (401, 403):
        hint = "the token (HF_TOKEN) is not valid here" if access.token else "it needs a token: set HF_TOKEN"
        return AccessDenied(f"{what}: the Hub answers {status}, {message}; {hint}. See {access.page}")
    return StoreError(f"{what}: the Hub answers {status}, {message}")


def _pages(access: HubAccess, path: str, query: Mapping[str, Any]) -> Iterator[Any]:
    """Read JSON from the Hub's API, following the Link header from page to page."""
    url: str | None = f"{access.endpoint}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")
    what = f"asking {access.endpoint} for {path.removeprefix('/api/')}"
    while url:
        response = _answered(access, url, what)
        yield response.json()
        onward = response.links.get("next", {}).get("url")
        # A page elsewhere would be given the token.
        url = onward if onward and onward.startswith(f"{access.endpoint}/") else None


def _answered(access: HubAccess, url: str, what: str) -> Any:
    """Send one request of the API, again while that may help."""
    package = _package()
    session = package.get_session()
    transport = import_module(type(session).__module__.partition(".")[0]).TransportError
    tries = Tries(what, access.patience)
    while True:
        asked_s = None
        try:
            response = session.get(url, headers=access.headers, timeout=access.timeout_s)
        except transport as error:
            failure = Transient(str(error) or type(error).__name__)
        else:
            status = response.status_code
            if status < 400:
                return response
            answer = Answer(status=status, headers={k.lower(): v for k, v in response.headers.items()})
            if status < 500 and status not in _PASSES:
                code = answer.headers.get("x-error-code", "")
                raise refusal(access, what, status, code, answer.headers.get("x-error-message", "without a reason"))
            failure, asked_s = Transient(f"the Hub says {status}", status), answer.retry_after_s
        time.sleep(tries.failed(failure, asked_s))


def _package() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError("reading from the Hub needs huggingface_hub: pip install 'penstock[hf]'") from None
    return huggingface_hub
