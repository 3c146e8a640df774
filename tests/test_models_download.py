import errno
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engineworks.models import DownloadError, Published, download

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /models/w.pth, as badly as a test asks."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cuts: list[int] = []  # one for each request: how many bytes to send before hanging up
        self.failures: list[int] = []  # one for each request: a status to answer with instead
        self.ranges = True
        self.offset_lie = 0
        self.seen: list[str | None] = []  # the Range header of each request

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about: print nothing."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.seen.append(asked)
        if self.path != "/models/w.pth":
            return self.send_error(404)
        if self.server.failures:
            return self.send_error(self.server.failures.pop(0))
        content = self.server.content
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            first = start + self.server.offset_lie
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stop = self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start : start + stop])
        return None

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setattr(download, "TIMEOUT_S", 5.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv(download.MIRROR, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def published(server: Server, *, path: str = "/models/w.pth", sha256: str = DIGEST[:8]) -> Published:
    return Published(url=server.url + path, sha256=sha256, licence="", top1=0, top5=0, source="")


def test_a_file_is_fetched_whole_and_progress_ends_at_its_size(server: Server, tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    path = download.fetch(published(server), tmp_path / "new", on_progress=lambda *call: calls.append(call))
    assert path == tmp_path / "new" / "w.pth"
    assert path.read_bytes() == CONTENT
    assert calls[0] == (0, len(CONTENT))
    assert calls[-1] == (len(CONTENT), len(CONTENT))
    assert calls == sorted(calls)
    assert not path.with_name("w.pth.part").exists()


def test_a_fetched_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    download.fetch(published(server), tmp_path)
    download.fetch(published(server), tmp_path)
    assert len(server.seen) == 1


def test_a_damaged_cached_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(CONTENT[:-1] + b"?")
    assert download.fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_a_cut_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000]
    assert download.fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.seen == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_transfer_that_is_always_cut_fails_and_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000] * download.ATTEMPTS
    with pytest.raises(DownloadError, match=r"gave up after 4 attempts .*Run again to go on from there"):
        download.fetch(published(server), tmp_path)
    assert (tmp_path / "w.pth.part").read_bytes() == CONTENT[: 1000 * download.ATTEMPTS]
    assert download.fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.seen[-1] == "bytes=4000-"


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [1_000_000]
    assert download.fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_a_server_that_is_busy_for_a_moment_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.failures = [503, 500]
    assert download.fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT)
    assert download.fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.seen == [f"bytes={len(CONTENT)}-"]


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT + b"more")
    assert download.fetch(published(server), tmp_path).read_bytes() == CONTENT


def test_a_part_of_an_older_file_is_thrown_away_once_the_digest_tells(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(b"older" * 1000)
    assert download.fetch(published(server), tmp_path).read_bytes() == CONTENT
    assert server.seen == ["bytes=5000-", None]


def test_bytes_from_another_offset_than_asked_are_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(CONTENT[:5000])
    server.offset_lie = 1
    with pytest.raises(DownloadError, match=r"expected bytes from 5000 on, got range 'bytes 5001-"):
        download.fetch(published(server), tmp_path)


def test_a_wrong_digest_is_refused_and_nothing_is_kept(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=rf"expected sha256 deadbeef\.\.\., got {DIGEST[:16]}.*deleted"):
        download.fetch(published(server, sha256="deadbeef"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth.lock"]


def test_an_address_that_is_not_there_fails_at_once_with_its_status(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"/models/none\.pth: 404 Not Found\. Is the address or the mirror right\?"):
        download.fetch(published(server, path="/models/none.pth"), tmp_path)
    assert len(server.seen) == 1


def test_a_server_that_is_not_there_is_said_so(server: Server, tmp_path: Path) -> None:
    nowhere = published(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"refused.*Is there a network"):
        download.fetch(nowhere, tmp_path)


def test_a_mirror_replaces_scheme_and_host(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(download.MIRROR, server.url + "/")
    there = Published("https://host.invalid/models/w.pth", DIGEST[:8], licence="", top1=0, top5=0, source="")
    assert download.fetch(there, tmp_path).read_bytes() == CONTENT


def test_a_mirror_on_the_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(download.MIRROR, "file:///etc")
    there = Published("https://host.invalid/passwd", "00", licence="", top1=0, top5=0, source="")
    with pytest.raises(DownloadError, match=r"expected an http or https address, got 'file:///etc/passwd'"):
        download.fetch(there, tmp_path)


def test_a_folder_that_cannot_be_written_is_the_folders_fault(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DownloadError, match=r"choose another folder"):
        download.fetch(published(server), tmp_path / "file")


def test_a_full_disk_is_no_cut(server: Server, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "w.pth.part").symlink_to(full)
    with pytest.raises(DownloadError, match=r"No space left on device\. Free some space"):
        download.fetch(published(server), tmp_path)
    assert len(server.seen) == 1


def test_two_threads_fetch_one_file_once(server: Server, tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(download.fetch(published(server), tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 4
    assert len(server.seen) == 1


def test_a_whole_file_in_a_folder_that_cannot_be_written_is_taken(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download.fetch(published(server), tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr("engineworks.models.download._alone", refuse)
    assert download.fetch(published(server), tmp_path).is_file()
