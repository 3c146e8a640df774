"""Loading: the import goes on while digests are computed, and what is opened is what was checked."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.runtime import BackendError, BundleError, load, open_bundle


def test_a_file_that_is_written_to_while_it_is_opened_is_found_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(graph: str, *given: Any, **more: Any) -> None:
        content = (bundle / "model.onnx").read_bytes()
        (bundle / "model.onnx").write_bytes(content[:-1] + b"x")
        os.utime(bundle / "model.onnx", ns=(1, 1))  # a clock may be too coarse to tell

    monkeypatch.setattr("engineworks.runtime.backend.open_session", slow)
    with pytest.raises(BundleError, match=r"model\.onnx was written to while it was opened\. Load it again\.$"):
        load(bundle)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only where open files have paths")
def test_a_file_moved_into_its_place_meanwhile_changes_nothing(bundle: Path) -> None:
    checked = open_bundle(bundle)
    wanted = (bundle / "model.onnx").read_bytes()
    with checked.checked("model.onnx") as path:
        (bundle / "new").write_bytes(b"another graph")
        (bundle / "new").replace(bundle / "model.onnx")
        assert Path(path).read_bytes() == wanted


def test_a_pipe_in_a_files_place_is_refused_and_not_waited_for(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx is not a file"):
        load(bundle)


def test_no_descriptor_is_left_open(bundle: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("only where open files can be counted")
    load(bundle, device="cpu").close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        load(bundle, device="cpu").close()
    (bundle / "model.onnx").write_bytes(b"damaged")
    for _ in range(5):
        with pytest.raises(BundleError):
            load(bundle, device="cpu")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_onnxruntime_that_cannot_be_imported_is_told_once_and_in_words(bundle: Path) -> None:
    script = (
        "import sys; sys.modules['onnxruntime'] = None; from engineworks import runtime\n"
        "try: runtime.load(sys.argv[1])\n"
        "except runtime.BackendError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnxruntime cannot be imported (")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_what_runs_on_every_host_opens(bundle: Path, name: Any) -> None:
    with load(bundle, device="cpu", backend=name) as session:
        assert session.infer(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 4)


def test_another_backend_is_refused_with_those_that_there_are(bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"^backend: expected one of auto, .*rtx, got 'openvino'"):
        load(bundle, backend="openvino")  # type: ignore[arg-type]


SHORT = """
import resource, sys, numpy as np, onnxruntime
from engineworks import runtime
runtime.load, runtime.Session  # every module is there before memory is short: imports raise what they like
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = used + (int(sys.argv[2]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    with runtime.load(sys.argv[1], device="cpu", threads=1) as model:
        for size in (1, 8, 32):
            model.infer(np.zeros((size, 1, 32, 32), np.float32))
    print("enough")
except (runtime.EngineworksError, MemoryError) as error:  # MemoryError: the array that is passed here
    print(type(error).__name__)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux")
@pytest.mark.parametrize("mebibytes", [2, 4, 8, 16, 64])
def test_whatever_memory_there_is_it_is_enough_or_an_error_of_ours(mebibytes: int) -> None:
    bundle = Path(__file__).parent / "data" / "lenet5-fp16"
    command = [sys.executable, "-c", SHORT, str(bundle), str(mebibytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() in {"enough", "BackendError", "BundleError", "MemoryError"}
