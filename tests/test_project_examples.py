"""Every example is run as its first line says: the service, the batch job, and the clients of a server."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks import runtime

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
BUNDLE = ROOT / "tests" / "data" / "lenet5-fp16"
SEVEN = EXAMPLES / "seven.png"


def run(*arguments: object, status: int = 0, warnings: str = "error") -> str:
    command = [sys.executable, "-W", warnings, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A file of the seven as the network takes it, and what the network answers."""
    file = tmp_path_factory.mktemp("values") / "seven.f32"
    with runtime.load(BUNDLE, device="cpu") as model:
        row = model.preprocess(SEVEN)
        file.write_bytes(row.tobytes())
        return file, model.infer(row)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """The service on a free port."""
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name)
    log = tmp_path / "log"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "0", "service:app"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=os.environ | {"BUNDLE": str(BUNDLE)}, stdout=stream, stderr=stream)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait(20)


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text("utf-8")):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text("utf-8"))


def post(url: str, body: bytes) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=20) as answer:
        return json.load(answer)


def test_the_service_answers_as_the_runtime_does_and_refuses_what_is_no_picture(
    service: str, values: tuple[Path, Any]
) -> None:
    assert post(f"{service}/classify?k=2", SEVEN.read_bytes())[0]["label"] == "7"
    np.testing.assert_allclose(post(f"{service}/scores", SEVEN.read_bytes()), values[1][0], rtol=1e-6)
    for address in ("classify", "scores"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(f"{service}/{address}", b"no picture")


def test_the_batch_job_names_every_picture_and_says_which_it_could_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "inner").mkdir(parents=True)
    for number in range(40):  # more than one batch
        shutil.copy(SEVEN, folder / "inner" / f"{number:02}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out.csv"
    assert "41 pictures, 1 of them not read" in run(EXAMPLES / "batch.py", BUNDLE, folder, out, status=1)
    with out.open(encoding="utf-8", newline="") as stream:
        table = {row["path"]: row for row in csv.DictReader(stream)}
    assert len(table) == 41
    assert table["broken.png"]["error"] != ""
    assert {row["label"] for path, row in table.items() if path != "broken.png"} == {"7"}
    (folder / "broken.png").unlink()
    run(EXAMPLES / "batch.py", BUNDLE, folder, out)


@pytest.mark.parametrize("form", ["--binary", "--json"])
def test_the_python_client_prints_what_the_network_answers(
    start: Callable[..., Any], values: tuple[Path, Any], form: str
) -> None:
    url = f"http://127.0.0.1:{start(BUNDLE).port}"
    out = run(EXAMPLES / "client.py", url, "lenet5-fp16", values[0], form)
    name, row, *numbers = out.split()
    assert (name, row) == ("output", "0")
    np.testing.assert_allclose([float(number) for number in numbers], values[1][0], rtol=1e-3)  # four digits
    assert "404: no such model" in run(EXAMPLES / "client.py", url, "lenet6", values[0], form, status=1)


def test_the_curl_client_gets_a_name_and_the_scores(start: Callable[..., Any], values: tuple[Path, Any]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    url = f"http://127.0.0.1:{start(BUNDLE).port}"
    command = ["sh", str(EXAMPLES / "client.sh"), url, "lenet5-fp16", str(SEVEN), str(values[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    ready, named, scores = (json.loads(line) for line in done.stdout.splitlines())
    assert ready == {"ready": True}
    assert named["predictions"][0]["label"] == "7"
    np.testing.assert_allclose(scores["outputs"][0]["data"], values[1][0], rtol=1e-6)
    command[3] = "lenet6"
    refused = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode != 0
    assert "no such model" in refused.stdout
