"""What holds for the whole repository: arrows between folders, words, pins, and nothing of one machine."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("export", "calibration", "models", "runtime")
MAY_IMPORT = {
    "export": {"export", "models", "calibration", "runtime"},
    "calibration": {"calibration", "runtime"},
    "models": {"models"},
    "runtime": {"runtime"},
}
SOURCES = sorted(file for folder in FOLDERS for file in (ROOT / folder).glob("*.py"))
ALL = pytest.mark.parametrize("file", SOURCES, ids=lambda file: f"{file.parent.name}/{file.name}")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def imports(file: Path) -> Iterator[str]:
    """Yield every module that a file names in an import, wherever it stands."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@ALL
def test_arrows_between_folders_point_downwards_only(file: Path) -> None:
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "engineworks" and len(parts) > 1:
            assert parts[1] in MAY_IMPORT[file.parent.name], f"{file.name} imports {name}"


@ALL
def test_the_runtime_and_the_calibration_never_name_torch(file: Path) -> None:
    if file.parent.name in {"runtime", "calibration"}:
        assert "torch" not in {name.split(".")[0] for name in imports(file)}


@ALL
def test_no_pickle_and_no_print(file: Path) -> None:
    assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {name.split(".")[0] for name in imports(file)}
    calls = [node.func for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]
    named = {call.id for call in calls if isinstance(call, ast.Name)}
    assert not {"print", "eval", "exec"} & named


@ALL
def test_every_module_says_what_it_is_for(file: Path) -> None:
    assert ast.get_docstring(tree(file))


@ALL
def test_every_public_name_is_documented(file: Path) -> None:
    assert undocumented(tree(file)) == []


def undocumented(scope: ast.Module | ast.ClassDef) -> list[str]:
    """Name the public functions, classes and methods without a docstring; an overload's words stand at the last."""
    found = []
    for node in scope.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        overload = any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in node.decorator_list)
        if not overload and not ast.get_docstring(node):
            found.append(node.name)
        if isinstance(node, ast.ClassDef):
            found += undocumented(node)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_name_in_all_exists_and_is_documented(folder: str) -> None:
    module = importlib.import_module(f"engineworks.{folder}")
    names = module.__all__
    assert len(names) == len(set(names))
    for name in names:
        value = getattr(module, name)
        if callable(value):
            assert value.__doc__, name


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_stay_flat(folder: str) -> None:
    inside = [entry.name for entry in (ROOT / folder).iterdir() if entry.is_dir() and entry.name != "__pycache__"]
    assert inside == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_package_imports_without_what_it_does_not_need(folder: str) -> None:
    heavy = {"runtime": "torch onnx onnxruntime PIL tensorrt", "models": "torch numpy", "export": "torch onnx numpy"}
    banned = heavy.get(folder, "torch onnx onnxruntime").split()
    code = f"import sys, engineworks.{folder}; print([name for name in {banned!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def tracked() -> list[Path]:
    """The files that git holds or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_file_holds_a_path_of_one_machine() -> None:
    homes = re.compile(rb"(?<![\w.])/(?:home|Users|root|work)/[\w.-]+|(?<![\w.])/tmp/[\w.-]+/[\w.-]+")
    found = {}
    for file in tracked():
        hits = {hit.group() for hit in homes.finditer(file.read_bytes())} - {b"/home/someone"}  # an example in tests
        if hits and file.name != Path(__file__).name:
            found[str(file.relative_to(ROOT))] = hits
    assert found == {}


def test_no_large_file_is_tracked() -> None:
    sizes = {str(file.relative_to(ROOT)): file.stat().st_size for file in tracked()}
    assert {name: size for name, size in sizes.items() if size > 400_000} == {}


# --- packaging ---


def test_the_packages_are_the_folders() -> None:
    tools = PROJECT["tool"]["setuptools"]
    assert sorted(tools["packages"]) == sorted(f"engineworks.{folder}" for folder in FOLDERS)
    assert tools["package-dir"] == {f"engineworks.{folder}": folder for folder in FOLDERS}
    assert all((ROOT / folder / "py.typed").is_file() for folder in FOLDERS)


def test_the_data_files_of_the_models_are_packaged() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["engineworks.models"]
    for file in (ROOT / "models").iterdir():
        if file.is_file() and file.suffix not in {".py", ".typed"}:
            assert any(file.match(pattern) for pattern in patterns), file.name


def test_the_checkers_links_lead_to_the_folders() -> None:
    for folder in FOLDERS:
        assert (ROOT / ".typing" / "engineworks" / folder).resolve() == ROOT / folder


def test_every_command_leads_to_a_function() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function)), target


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return normal(match.group())


def test_every_dependency_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {normal(name) for name in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"]]
    wanted += [line for extra, group in extras.items() if extra != "tensorrt" for line in group]
    elsewhere = {"onnxruntime"}  # the base install takes onnxruntime-gpu here, and this one on other platforms
    assert {named(line) for line in wanted} - pinned - elsewhere == set()


def test_the_pins_fit_what_the_project_asks_for() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {normal(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    extras = PROJECT["project"]["optional-dependencies"]
    for line in [*PROJECT["project"]["dependencies"], *(line for group in extras.values() for line in group)]:
        least = re.search(r">=([\d.]+)", line.split(";")[0])
        if least and named(line) in pins:
            have, want = (
                [int(part) for part in re.findall(r"\d+", text)] for text in (pins[named(line)], least.group(1))
            )
            assert have >= want, line


def test_every_make_target_in_the_words_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        file = ROOT / name
        text = file.read_text("utf-8") if file.is_file() else ""
        used = set(re.findall(r"^\s*(?:\$ )?make ([a-z][\w-]*)", text, re.MULTILINE))
        used |= set(re.findall(r"`make ([a-z][\w-]*)", text))
        assert used <= targets, f"{name}: {used - targets}"


def test_every_command_and_file_that_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    if not text.strip():
        pytest.skip("the README is not written yet")
    scripts = set(PROJECT["project"]["scripts"])
    used = set(
        re.findall(
            r"^\s*(?:\$ )?(?:\.venv/bin/)?((?:export|inspect|check|bench|evaluate|serve|deploy)-[a-z]+)\b",
            text,
            re.MULTILINE,
        )
    )
    assert used <= scripts, used - scripts
    for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_every_flag_that_the_readme_gives_export_model_exists() -> None:
    from engineworks.export.cli import _command

    known = {option for parameter in _command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    text = (ROOT / "README.md").read_text("utf-8")
    for line in re.findall(r"export-model [^\n`|]*", text):
        assert set(re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", line)) <= known | {"--help"}, line
