"""A folder appears whole or not at all: full disks, interrupts, kills at every line, races, and old file systems."""

import contextlib
import errno
import fcntl
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from engineworks.runtime import BundleError, Manifest, files, open_bundle, write_bundle

CONTENT = {"model.onnx": b"graph" * 1000, "engines/a.engine": b"engine" * 1000}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def version(path: Path) -> str:
    """Which of the bundles stands there; every byte of it is checked."""
    bundle = open_bundle(path)
    bundle.verify()
    return bundle.manifest.name


def content(name: str) -> dict[str, bytes]:
    return {file: data + name.encode() for file, data in CONTENT.items()}


@pytest.fixture
def write(tmp_path: Path, manifest: Manifest) -> Callable[..., Path]:
    """Write the bundle of some name to one target."""

    def write_one(name: str, *, force: bool = True, out: Path | None = None) -> Path:
        target = out or tmp_path / "b"
        return write_bundle(target, replace(manifest, name=name), content(name), force=force).path

    return write_one


@pytest.fixture
def no_renameat2(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows plain renames alone."""
    monkeypatch.setattr(files, "_rename", lambda source, target, flag: False)


# --- the disk refuses


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("force", [True, False])
def test_a_disk_that_refuses_at_any_flush_leaves_nothing_behind(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, code: int, force: bool
) -> None:
    if force:
        write("old")
    before, flush, left = names(tmp_path), os.fsync, 0

    def refuse(handle: int) -> None:
        nonlocal left
        if not left:
            raise OSError(code, os.strerror(code))
        left -= 1
        flush(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    for left_before in range(7):  # two calls for each of three files, and one for the folder
        left = left_before
        with pytest.raises(BundleError) as caught:
            write("new", force=force)
        assert str(caught.value) == (f"cannot write {tmp_path / 'b'}: {os.strerror(code)}. Nothing was left behind.")
        assert names(tmp_path) == before
    assert not force or version(tmp_path / "b") == "old"


RLIMIT = """
import resource, signal, sys
from pathlib import Path
from engineworks import runtime
manifest = runtime.open_bundle(sys.argv[1]).manifest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    runtime.write_bundle(Path(sys.argv[1]), manifest, {"small": b"x", "large": bytes(50_000)}, force=True)
except runtime.BundleError as error:
    print(error)
"""


def test_a_limit_of_the_system_midway_in_a_file_leaves_the_old_bundle(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write("old")
    answer = subprocess.run([sys.executable, "-c", RLIMIT, path], check=True, capture_output=True, text=True)
    assert answer.stdout == f"cannot write {path}: File too large. Nothing was left behind.\n"
    assert version(path) == "old"
    assert names(tmp_path) == ["b"]


# --- interrupts and kills at every line


def lines_of(first: Path) -> Callable[[FrameType], bool]:
    return lambda frame: frame.f_code.co_filename == str(first)


@contextmanager
def at_line(number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Act before the n-th line that runs in ``runtime/files.py``; tells how many have run."""
    count = [0]
    ours = lines_of(Path(files.__file__))

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not ours(frame):
            return trace
        if event == "line":
            count[0] += 1
            if count[0] == number:
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


def handles() -> set[int]:
    """The folders that this process holds open."""
    held = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing itself
            held |= {int(link.name)} if link.readlink().is_dir() else set()
    return held


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # between an open and its with
def test_an_interrupt_at_any_line_leaves_the_old_bundle_or_the_new_one(write: Callable[..., Path]) -> None:
    path = write("old")
    before = handles()
    finished = number = 0
    while not finished and number < 1000:
        number += 1
        with at_line(number, interrupt) as count:
            try:
                write("new")
                finished = count[0] < number
            except KeyboardInterrupt:
                pass
        assert version(path) in {"old", "new"}
        for handle in handles() - before:  # as the end of the process does; until then its locks are held
            os.close(handle)
    gc.collect()
    assert 40 < number < 1000


def test_an_interrupt_while_files_are_written_leaves_nothing_behind(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(handle: int) -> None:
        raise KeyboardInterrupt

    write("old")
    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write("new")
    assert names(tmp_path) == ["b"]
    assert version(tmp_path / "b") == "old"


KILL = """
import os, signal, sys, warnings
from dataclasses import replace
from pathlib import Path
warnings.simplefilter("ignore")  # fork with the threads of a BLAS that is not used here
from engineworks.runtime import files, open_bundle, write_bundle

os.fsync = lambda handle: None  # a kill loses nothing that was written, flushed or not
target, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "plain":
    files._rename = lambda source, target, flag: False
manifest = open_bundle(target).manifest


def write(name):
    data = {file: content + name.encode() for file, content in {"model.onnx": b"g" * 99, "engines/a": b"e"}.items()}
    write_bundle(target, replace(manifest, name=name), data, force=True)


def version():
    bundle = open_bundle(target)
    bundle.verify()
    return bundle.manifest.name


def killed(number, name):
    child = os.fork()
    if not child:
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if frame.f_code.co_filename == files.__file__ and event == "line":
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        write(name)
        sys.settrace(None)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


number, left, found = 1, 0, set()
write("old")
while killed(number, "new"):
    left = max(left, len(list(target.parent.glob(".*"))))
    if target.exists():
        found.add(version())
    else:
        found.add("none")
    write("old")  # the next writer, undisturbed, cleans up
    assert [entry.name for entry in target.parent.iterdir()] == [target.name], list(target.parent.iterdir())
    assert version() == "old"
    number += 1
print(number > 40, left, sorted(found))
"""


def kill_at_every_line(path: Path, mode: str) -> str:
    command = [sys.executable, "-c", KILL, str(path), mode]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    ).stdout.strip()


def test_a_kill_at_any_line_leaves_one_whole_bundle_and_the_next_writer_cleans_up(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    assert kill_at_every_line(write("old"), "exchange") == "True 1 ['new', 'old']"


@pytest.mark.slow
def test_without_an_exchange_a_kill_may_leave_the_name_free_but_loses_nothing_for_the_next_writer(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    assert kill_at_every_line(write("old"), "plain") == "True 2 ['new', 'none', 'old']"


def test_the_next_writer_gives_a_set_aside_bundle_its_name_back(tmp_path: Path, write: Callable[..., Path]) -> None:
    write("old").rename(tmp_path / f".b.partial-{'0' * 16}-old")  # as a kill between two renames leaves it
    with pytest.raises(BundleError, match="File exists"):
        write("new", force=False)
    assert version(tmp_path / "b") == "old"
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize(
    "name", [".b.partial-notes", ".b.partial-", ".bb.partial-0123456789abcdef", "b.partial-0123456789abcdef", ".b"]
)
def test_a_folder_that_no_writer_made_is_left_alone(tmp_path: Path, write: Callable[..., Path], name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").touch()
    write("new")
    assert (tmp_path / name / "mine").exists()


@pytest.mark.parametrize("kind", ["file", "dangling link", "link", "pipe"])
def test_what_only_looks_like_an_abandoned_folder_is_no_hindrance(
    tmp_path: Path, write: Callable[..., Path], kind: str
) -> None:
    odd, precious = tmp_path / ".b.partial-0123456789abcdef", tmp_path / "precious"
    precious.mkdir()
    (precious / "mine").touch()
    make: dict[str, Callable[[], None]] = {
        "file": odd.touch,
        "dangling link": lambda: odd.symlink_to("nowhere"),
        "link": lambda: odd.symlink_to(precious),
        "pipe": lambda: os.mkfifo(odd),
    }
    make[kind]()
    write("new")
    assert version(tmp_path / "b") == "new"
    assert (precious / "mine").exists()


def test_a_folder_that_another_writer_fills_is_left_alone(tmp_path: Path, write: Callable[..., Path]) -> None:
    with files.new_folder(tmp_path / "b", replace=True) as first:
        first.write("first", b"")
        write("second")
        first.write("still", b"here")
        (tmp_path / "b").rename(tmp_path / "second")
    assert names(tmp_path / "b") == ["first", "still"]
    assert names(tmp_path) == ["b", "second"]


def test_a_folder_that_vanishes_while_a_writer_looks_is_no_hindrance(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / ".b.partial-0123456789abcdef"
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([gone, *listing(self)]))
    assert version(write("new")) == "new"


# --- races


def race(writers: int, write: Callable[[int], object]) -> list[BaseException | None]:
    """Call ``write`` in so many threads at once; tell what each raised."""
    barrier = threading.Barrier(writers)
    raised: list[BaseException | None] = [None] * writers

    def run(number: int) -> None:
        barrier.wait()
        try:
            write(number)
        except BaseException as error:
            raised[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.mark.parametrize("repeat", range(3))
def test_of_eight_threads_without_force_exactly_one_wins(
    tmp_path: Path, write: Callable[..., Path], repeat: int
) -> None:
    raised = race(8, lambda number: write(str(number), force=False))
    assert sum(error is None for error in raised) == 1
    assert {type(error) for error in raised if error} == {BundleError}
    assert version(tmp_path / "b") == str(raised.index(None))
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("repeat", range(3))
def test_of_eight_threads_with_force_each_succeeds_and_one_is_whole(
    tmp_path: Path, write: Callable[..., Path], exists: bool, repeat: int
) -> None:
    if exists:
        write("old")
    assert race(8, lambda number: write(str(number))) == [None] * 8
    assert version(tmp_path / "b") in set("01234567")
    assert names(tmp_path) == ["b"]


@pytest.mark.usefixtures("no_renameat2")
def test_without_an_exchange_racing_writers_leave_one_whole_bundle(tmp_path: Path, write: Callable[..., Path]) -> None:
    write("old")
    raised = race(8, lambda number: write(str(number)))
    assert {type(error) for error in raised if error} <= {BundleError}
    assert None in raised
    assert version(tmp_path / "b") in set("01234567")
    assert names(tmp_path) == ["b"]


RACE = """
import sys
from dataclasses import replace
from pathlib import Path
from engineworks.runtime import BundleError, open_bundle, write_bundle

pattern, target, name, force = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "force"
manifest = replace(open_bundle(pattern).manifest, name=name)
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(20):
    try:
        write_bundle(target if force else target.with_name(f"{target.name}{number}"), manifest,
                     {"file": name.encode() * 1000}, force=force)
        won += 1
    except BundleError as error:
        assert not force, error
print(won, flush=True)
"""


def two_processes(pattern: Path, target: Path, force: str) -> list[int]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, pattern, target, name, force],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        answers.append(int(process.communicate()[0]))
        assert process.returncode == 0
    return answers


def test_of_two_processes_without_force_exactly_one_wins_each_name(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    assert sum(two_processes(write("pattern"), folder / "b", "careful")) == 20
    assert {version(path) for path in folder.iterdir()} <= {"one", "two"}
    assert len(names(folder)) == 20


def test_of_two_processes_with_force_both_succeed_every_time(tmp_path: Path, write: Callable[..., Path]) -> None:
    folder = tmp_path / "targets"
    folder.mkdir()
    assert two_processes(write("pattern"), folder / "b", "force") == [20, 20]
    assert version(folder / "b") in {"one", "two"}
    assert names(folder) == ["b"]


def test_a_reader_beside_a_writer_never_misses_the_bundle_and_never_gets_wrong_bytes(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    path = write("0")
    stop = threading.Event()
    wrong: list[object] = []
    whole = 0

    def read() -> None:
        nonlocal whole
        while not stop.is_set():
            bundle = open_bundle(path)  # with an exchange the name is never free
            try:
                got = bundle.read("model.onnx")
            except BundleError:
                continue  # the writer came in between: refused, not mixed
            whole += 1
            if got != content(bundle.manifest.name)["model.onnx"]:
                wrong.append(got)

    def watch() -> None:
        try:
            read()
        except BaseException as error:
            wrong.append(error)

    reader = threading.Thread(target=watch)
    reader.start()
    try:
        for number in range(25):
            write(str(number))
    finally:
        stop.set()
        reader.join()
    assert wrong == []
    assert whole > 0


# --- file systems that know less


def fill(target: Path, meanwhile: Callable[[], object], *, replace: bool = False) -> None:
    with files.new_folder(target, replace=replace) as folder:
        folder.write("mine/and/deeper", b"")
        meanwhile()


@pytest.mark.usefixtures("no_renameat2")
@pytest.mark.parametrize("exists", [True, False])
def test_without_renameat2_a_bundle_is_written_and_replaced_all_the_same(
    tmp_path: Path, write: Callable[..., Path], exists: bool
) -> None:
    if exists:
        write("old")
    assert version(write("new")) == "new"
    assert names(tmp_path) == ["b"]


@pytest.mark.usefixtures("no_renameat2")
def test_without_renameat2_the_steps_are_taken_under_the_lock_of_the_parent(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, refused = Path.rename, []

    def watched(self: Path, target: Path) -> Path:
        handle = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refused.append(target.name)
        finally:
            os.close(handle)
        return rename(self, target)

    write("old")
    monkeypatch.setattr(Path, "rename", watched)
    write("new")
    assert len(refused) == 3


@pytest.mark.usefixtures("no_renameat2")
def test_without_renameat2_a_target_that_appeared_meanwhile_is_kept(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(FileExistsError):
        fill(tmp_path / "b", (tmp_path / "b").mkdir)
    assert names(tmp_path) == ["b"]
    assert names(tmp_path / "b") == []


def test_a_target_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        fill(tmp_path / "b", (tmp_path / "b").mkdir)
    assert names(tmp_path) == ["b"]
    assert names(tmp_path / "b") == []


def test_a_file_that_appeared_meanwhile_is_kept_even_with_replace(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        fill(tmp_path / "b", lambda: (tmp_path / "b").write_bytes(b"precious"), replace=True)
    assert (tmp_path / "b").read_bytes() == b"precious"
    assert names(tmp_path) == ["b"]


@pytest.mark.usefixtures("no_renameat2")
def test_without_renameat2_a_second_step_that_fails_brings_the_old_bundle_back(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == tmp_path / "b" and not self.name.endswith("-old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BundleError, match=r"Input/output error\. Nothing was left behind"):
        write("new")
    monkeypatch.undo()
    assert version(tmp_path / "b") == "old"
    assert names(tmp_path) == ["b"]


def test_an_error_of_the_block_takes_the_folder_away(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "b", interrupt)
    assert names(tmp_path) == []


def test_no_folder_is_left_open(tmp_path: Path, write: Callable[..., Path]) -> None:
    before = handles()
    for number in range(5):
        write(str(number))
        with pytest.raises(BundleError):
            write("x", force=False)
        with pytest.raises(KeyboardInterrupt):
            fill(tmp_path / "c", interrupt)
    assert handles() == before
