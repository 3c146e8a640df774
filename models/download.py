"""Fetch published weights: resumed when cut, checked against the published digest, put in place in one step.

``ENGINEWORKS_MIRROR=https://mirror.example`` takes the place of scheme and host in every address.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from engineworks.models.errors import DownloadError
from engineworks.models.registry import Published

Progress = Callable[[int, int | None], None]

MIRROR: Final = "ENGINEWORKS_MIRROR"
ATTEMPTS: Final = 4
TIMEOUT_S: Final = 30.0  # without a byte, not for the whole
PAUSE_S: Final = 1.0  # before the second attempt; longer before each later one
CHUNK: Final = 1 << 20


class _CutError(Exception):
    """The connection ended early; what came is kept, and the next attempt goes on from there."""


def fetch(published: Published, folder: Path, *, on_progress: Progress | None = None) -> Path:
    """Return the published file from ``folder``, downloading it first where it is absent or damaged.

    Args:
        published: address and known leading hex digits of its sha256.
        folder: made where absent. Beside the file, ``NAME.part`` holds an unfinished download until it is resumed.
        on_progress: called with the bytes that are there and the whole number, None where the server does not say.

    Raises:
        DownloadError: the server refuses or is not reachable, the transfer is cut again and again, the digest is
            another one (nothing is kept then), or the folder cannot be written.
    """
    url = address(published)
    target = Path(folder) / Path(urlsplit(url).path).name
    try:
        if _is_whole(target, published):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if not _is_whole(target, published):  # another process may have fetched it meanwhile
                _download(url, target, published, on_progress or _silent)
    except OSError as error:  # network errors are DownloadErrors by now: this is the disk
        why = error.strerror or error
        raise DownloadError(f"{target}: {why}. Free some space or choose another folder.") from error
    return target


def _is_whole(target: Path, published: Published) -> bool:
    return target.is_file() and _digest(target).startswith(published.sha256)


def address(published: Published) -> str:
    """Return where the file is fetched from: the published address, or the same path on the mirror.

    Raises:
        DownloadError: the address is neither http nor https.
    """
    url = published.url
    mirror = os.environ.get(MIRROR)
    if mirror:
        url = mirror.rstrip("/") + urlsplit(url).path
    if urlsplit(url).scheme not in {"http", "https"}:
        raise DownloadError(f"expected an http or https address, got {url!r}. Mend {MIRROR}.")
    return url


def _download(url: str, target: Path, published: Published, progress: Progress) -> None:
    """Fill the part file, check it, and rename it; where a resumed one is wrong, once more from the start."""
    part = target.with_name(target.name + ".part")
    resumed = part.exists()
    _fill(url, part, progress)
    digest = _digest(part)
    if not digest.startswith(published.sha256) and resumed:
        part.unlink()
        _fill(url, part, progress)
        digest = _digest(part)
    if not digest.startswith(published.sha256):
        part.unlink()
        raise DownloadError(
            f"{url}: expected sha256 {published.sha256}..., got {digest[:16]}...; the file was deleted. "
            "A proxy or mirror serves something else."
        )
    part.replace(target)


def _fill(url: str, part: Path, progress: Progress) -> None:
    """Try until the part file is whole."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _transfer(url, part, progress)
        except _CutError as error:
            if attempt == ATTEMPTS:
                raise DownloadError(
                    f"{url}: gave up after {ATTEMPTS} attempts ({error}). Run again to go on from there."
                ) from error
            time.sleep(PAUSE_S * attempt)
    return None


def _transfer(url: str, part: Path, progress: Progress) -> None:
    """Make one request, from where the part file ends."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = _open(url, have)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                return _judge_whole(error.headers.get("Content-Range"), part, have)
            if error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise _CutError(f"{error.code} {error.reason}") from error
            raise DownloadError(f"{url}: {error.code} {error.reason}. Is the address or the mirror right?") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError | ConnectionResetError | http.client.RemoteDisconnected):
            raise _CutError(reason) from error
        raise DownloadError(f"{url}: {reason}. Is there a network, a proxy, or {MIRROR} to set?") from error
    with response:
        return _receive(response, part, have, progress)


def _open(url: str, have: int) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    opened: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    return opened


def _judge_whole(content_range: str | None, part: Path, have: int) -> None:
    """Decide after 416 (nothing beyond this offset): the part is whole, or another file's and to be fetched anew."""
    if content_range != f"bytes */{have}":
        part.unlink()
        raise _CutError("the file on the server has another size")


@dataclass(frozen=True)
class _Plan:
    """Where the response's bytes go, and how many there will be in all."""

    start: int
    total: int | None


def _plan(response: http.client.HTTPResponse, have: int) -> _Plan:
    """Read the status line: 206 goes on at our offset, anything else starts over."""
    length = response.headers.get("Content-Length")
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match and int(match[1]) == have:
            return _Plan(have, None if match[2] == "*" else int(match[2]))
        raise DownloadError(f"{response.url}: expected bytes from {have} on, got range {match and match[0]!r}.")
    return _Plan(0, int(length) if length else None)


def _receive(response: http.client.HTTPResponse, part: Path, have: int, progress: Progress) -> None:
    plan = _plan(response, have)
    done = plan.start
    with part.open("ab" if plan.start else "wb") as file:
        progress(done, plan.total)
        for chunk in _chunks(response):
            file.write(chunk)
            done += len(chunk)
            progress(done, plan.total)
    if plan.total is not None and done < plan.total:
        raise _CutError(f"{done} of {plan.total} bytes came")


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what comes; only errors of the network become a cut, those of the disk do not."""
    while True:
        try:
            chunk = response.read(CHUNK)
        except http.client.IncompleteRead as error:
            yield error.partial
            raise _CutError("the connection was closed") from error
        except (OSError, http.client.HTTPException) as error:
            raise _CutError(error) from error
        if not chunk:
            return
        yield chunk


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Let one process at a time work on this file; the next finds it there."""
    import fcntl

    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _silent(_done: int, _total: int | None) -> None:
    """Report nothing."""
