"""docker/Dockerfile, linted and built for real; the image's root is entered and answers over HTTP.

Slow: a Debian is made, once for all tests, and both flavours that need no index of NVIDIA's are built over it.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
slow = pytest.mark.slow

CLIENT = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=30)
body = open(sys.argv[1], "rb").read()
connection.request("POST", "/v2/models/lenet5-fp32/classify?k=1", body)
answer = connection.getresponse()
print(json.dumps([answer.status, json.loads(answer.read())]))
"""


@pytest.fixture(scope="module")
def workshop(containers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if reason := containers.missing():
        pytest.skip(reason)
    shop = containers.Workshop(tmp_path_factory.mktemp("containers") / "shop")
    yield shop
    shop.close()


@pytest.fixture(scope="module")
def base(workshop: Any) -> str:
    return str(workshop.make_base())


@pytest.fixture(scope="module", params=["cpu", "rtx"])
def image(workshop: Any, base: str, request: pytest.FixtureRequest) -> Any:
    return workshop.build("runtime", FLAVOUR=request.param, BASE=base)


@pytest.fixture(scope="module")
def root(workshop: Any, image: Any) -> Iterator[Path]:
    with workshop.opened(image) as folder:
        yield folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one bundle, trained, that anyone may read."""
    from engineworks.export.cli import main

    folder = tmp_path_factory.mktemp("models")
    assert main(["lenet5", "--fp32", "--engine", "none", "-q", "-o", str(folder / "lenet5-fp32")]) == 0
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    return folder


@pytest.fixture
def container(containers: Any, image: Any, root: Path, models: Path, tmp_path: Path) -> Iterator[Any]:
    running = containers.Container(image, root, models, tmp_path / "log")
    running.wait_for("listening on")
    first = running.pid
    yield running
    running.close()
    end = time.monotonic() + 10
    while Path(f"/proc/{first}").exists() and time.monotonic() < end:  # it is the kernel's to clear away
        time.sleep(0.05)
    assert not Path(f"/proc/{first}").exists(), "a server was left running"


# --- the file, read by a linter


def hadolint(file: Path) -> list[Any]:
    program = Path(sys.executable).with_name("hadolint")
    command: list[str | Path] = [program, "--config", ROOT / ".hadolint.yaml", "--no-fail", "--format", "json", file]
    return list(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def test_hadolint_finds_nothing() -> None:
    assert hadolint(DOCKERFILE) == []


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text(
        DOCKERFILE.read_text("utf-8").replace('ENTRYPOINT ["serve-model"]', "ENTRYPOINT serve-model"), "utf-8"
    )
    assert [fault["code"] for fault in hadolint(file)] == ["DL3025"]


def test_no_file_of_the_build_names_where_packages_come_from() -> None:
    for file in (DOCKERFILE, ROOT / ".dockerignore", ROOT / "docker" / "requirements.py"):
        assert not re.search(r"https?://|index-url|trusted-host", file.read_text("utf-8")), file.name


def test_an_extra_that_there_is_not_is_refused(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, ROOT / "docker" / "requirements.py", ROOT / "pyproject.toml", "serve"]
    done = subprocess.run([*command, "cpu"], check=True, capture_output=True, text=True)
    assert {"uvicorn", "numpy"} <= {re.split("[^a-z]", line)[0] for line in done.stdout.splitlines()}
    done = subprocess.run([*command, "cuda"], check=False, capture_output=True, text=True)
    assert done.returncode == 2 and "'cuda' is none of cpu, export, grpc" in done.stderr


def test_where_packages_come_from_is_read_from_pips_settings(
    containers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://there/simple file://{tmp_path}/index")
    wanted = {str(tmp_path / "wheels"), "https://there/simple", f"file://{tmp_path}/index", str(tmp_path)}
    assert wanted <= containers.package_places()
    arguments = containers.packages_from_here(tmp_path)
    assert {f"{place}:{place}:ro" for place in (tmp_path, tmp_path / "wheels")} <= set(arguments)


# --- the image, built


@slow
def test_the_image_says_how_it_is_to_be_run(image: Any) -> None:
    config = image.config
    assert (config["User"], config["StopSignal"], list(config["ExposedPorts"])) == (
        "10001:10001",
        "SIGTERM",
        ["8000/tcp"],
    )
    assert (config["Entrypoint"], config["Cmd"]) == (["serve-model"], ["--repository", "/models"])
    assert config["Healthcheck"]["Test"] == ["CMD", "python", "-m", "engineworks.runtime.serve_probe"]
    wanted = {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility", "SERVE_MODEL_HOST=0.0.0.0"}
    assert wanted <= set(config["Env"])


@slow
def test_the_image_holds_what_serving_needs_and_no_torch(image: Any, root: Path) -> None:
    (packages,) = root.glob("opt/engineworks/lib/python3*/site-packages")
    held = {place.name for place in packages.iterdir()}
    assert {"engineworks", "onnxruntime", "numpy", "uvicorn", "grpc"} <= held
    assert not {"torch", "onnx", "pip", "setuptools", "tensorrt", "triton", "pytest"} & held
    assert ("tensorrt_rtx" in held) == image.name.endswith("rtx")
    assert not (root / "src").exists() and not (root / "opt" / "pip").exists()


@slow
def test_the_image_does_not_tell_where_its_packages_came_from(containers: Any, image: Any, root: Path) -> None:
    assert not (root / "etc" / "pip.conf").exists() or not (root / "etc" / "pip.conf").read_bytes()
    assert not any((root / "run" / "secrets").glob("*"))
    told = json.dumps([image.config, [line for line, _ in image.layers]])
    assert not re.search(r"https?://", told)
    assert not any(place in told for place in containers.package_places() - {"/"})


# --- the image, run


@slow
def test_it_answers_as_a_stranger_on_a_root_that_it_cannot_write(container: Any, models: Path) -> None:
    status, answer = json.loads(container.beside(sys.executable, "-c", CLIENT, str(ROOT / "examples" / "seven.png")))
    assert status == 200
    (prediction,) = answer["predictions"]
    assert (prediction["label"], prediction["index"]) == ("7", 7)
    state = Path(f"/proc/{container.pid}/status").read_text("utf-8")
    assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", state, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", state, re.MULTILINE)


@slow
def test_its_health_check_passes_while_it_serves(container: Any, image: Any) -> None:
    assert container.inside(image, *image.config["Healthcheck"]["Test"][1:]) == ""
    code = "import pathlib\ntry: pathlib.Path('/opt/x').touch()\nexcept OSError as error: print(error.strerror)"
    assert container.inside(image, "python", "-c", code) in {"Read-only file system\n", "Permission denied\n"}


@slow
def test_told_to_stop_while_it_loads_it_stops(
    containers: Any, image: Any, root: Path, models: Path, tmp_path: Path
) -> None:
    code = (
        "import engineworks.runtime.serve_models as m, time, runpy, sys; m.Models.rescan = lambda self: "
        "(print('loading', flush=True), time.sleep(60)); sys.argv = ['serve-model', '--repository', '/models']; "
        "import engineworks.runtime.serve as s; s.run()"
    )
    config = {**image.config, "Entrypoint": ["python", "-c", code], "Cmd": ["unused"]}
    running = containers.Container(replace(image, config=config), root, models, tmp_path / "log")
    running.wait_for("loading")
    assert running.end() == 128 + 15
    running.close()


@slow
def test_told_to_stop_it_exits_with_status_0(container: Any) -> None:
    assert container.end() == 0
