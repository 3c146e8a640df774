"""Every TensorRT name that our source uses exists in the snapshots of the real APIs.

Variables are typed by their names (``builder`` is a ``Builder``), which is a convention of ``trt_*.py``. A name
may be absent from an API only in a function that asks ``hasattr`` first, and then only where that answer is False too.
"""

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent
SOURCES = [
    *sorted((ROOT.parent / "export").glob("trt_*.py")),
    ROOT.parent / "export" / "engine.py",
    *sorted((ROOT.parent / "runtime").glob("trt_*.py")),
]
NAMES = [f"{path.parent.name}/{path.name}" for path in SOURCES]
APIS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "snapshots").glob("tensorrt*.json"))}
COMPILING = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "layer": "ILayer",
    "memory": "IHostMemory",
    "error": "ParserError",
}
RUNNING = {
    "memory": "IHostMemory",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
    "inspector": "EngineInspector",
}
MODULE_VARIABLES = {"trt"}
BASES = {"Logger": "ILogger", "Monitor": "IProgressMonitor"}
MAKERS = {
    "create_network",
    "create_builder_config",
    "create_optimization_profile",
    "get_layer",
    "get_input",
    "get_output",
    "get_error",
    "deserialize_cuda_engine",
    "create_execution_context",
    "create_runtime_config",
    "create_runtime_cache",
    "create_engine_inspector",
}
DUNDER = {"__version__", "__name__"}

Use = tuple[str, ...]


def names_of(path: Path) -> dict[str, str]:
    """Which variables stand for which of TensorRT's classes in a file."""
    return RUNNING if path.parent.name == "runtime" else COMPILING


def chain(node: ast.AST, classes: dict[str, str]) -> Use:
    """``trt.BuilderFlag.TF32`` as ("trt", "BuilderFlag", "TF32"); empty where the root is no name of the compiler's."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if isinstance(node, ast.Name) and (node.id in MODULE_VARIABLES or node.id in classes) and names:
        return (node.id, *names)
    if names and names[0] in MODULE_VARIABLES | set(classes) and len(names) > 1:  # shop.trt.Builder
        return tuple(names)
    return ()


def exists(api: dict[str, Any], use: Use, classes: dict[str, str]) -> bool:
    root, name, *rest = use
    if root in classes:
        return name in api["classes"].get(classes[root], {"attributes": ()})["attributes"]
    if name in DUNDER or name in api["names"]:
        return True
    spec = api["classes"].get(name)
    return spec is not None and (
        not rest or rest[0] == "__init__" or rest[0] in {**spec.get("members", {}), **spec.get("attributes", {})}
    )


def guards(function: ast.AST) -> list[Use]:
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    asked = [call for call in calls if getattr(call.func, "id", "") == "hasattr"]
    return [(call.args[0].id, str(call.args[1].value)) for call in asked
            if isinstance(call.args[0], ast.Name) and isinstance(call.args[1], ast.Constant)]  # fmt: skip


def uses(source: str, classes: dict[str, str]) -> Iterator[tuple[Use, list[Use], int]]:
    """Every use of the compiler's API with the guards of its function and its line."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if found := chain(node, classes):
                    yield found, guards(function), getattr(node, "lineno", 0)


def missing(source: str, classes: dict[str, str] = COMPILING) -> list[str]:
    """Name each use that an API lacks without a guard that fails there too; what it has no class of, it gives none."""
    problems = []
    for use, asked, line in uses(source, classes):
        for label, api in APIS.items():
            guarded = any(not exists(api, guard, classes) for guard in asked if guard[0] in classes)
            never = use[0] in classes and classes[use[0]] not in api["classes"]
            if not guarded and not never and not exists(api, use, classes):
                problems.append(f"line {line}: {'.'.join(use)} is not in {label}")
        if not any(exists(api, use, classes) for api in APIS.values()):
            problems.append(f"line {line}: {'.'.join(use)} is in no API at all")
    return problems


def makes(node: ast.AST) -> bool:
    """Whether this is a call that gives one of the compiler's objects."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MAKERS


def untyped_makers(source: str, classes: dict[str, str] = COMPILING) -> list[str]:
    """Name each place where a compiler's object has no name, or one that ``classes`` does not know."""
    problems = []
    for node in ast.walk(ast.parse(source)):
        unknown = (
            isinstance(node, ast.Assign)
            and makes(node.value)
            and not {ast.unparse(target) for target in node.targets} & set(classes)
        )
        chained = isinstance(node, ast.Attribute) and makes(node.value)
        if unknown or chained:
            problems.append(ast.unparse(node))
    return problems


def test_the_snapshots_are_of_the_versions_they_are_named_after() -> None:
    assert {label: api["version"] for label, api in APIS.items()} == {
        "tensorrt-10.16": "10.16.1.11",
        "tensorrt-11.4": "11.4.0.106",
        "tensorrt_rtx-1.7": "1.7.1.116",
    }


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_every_name_in_our_source_exists_in_each_api(path: Path) -> None:
    source = path.read_text()
    assert missing(source, names_of(path)) == []
    assert untyped_makers(source, names_of(path)) == []


def test_the_source_is_really_read() -> None:
    found = {use for path in SOURCES for use, _, _ in uses(path.read_text(), names_of(path))}
    assert {
        ("builder", "build_serialized_network"),
        ("parser", "parse_from_file"),
        ("trt", "IProgressMonitor"),
    } <= found
    assert {("config", "set_compute_capability"), ("tensor", "get_dimension_name"), ("layer", "type")} <= found
    assert {("runtime", "deserialize_cuda_engine"), ("engine", "create_runtime_config")} <= found
    assert {
        ("context", "execute_async_v3"),
        ("runtime_cache", "serialize"),
        ("inspector", "get_engine_information"),
        ("trt", "LayerInformationFormat", "JSON"),
        ("trt", "CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"),
    } <= found


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_our_subclasses_override_what_the_base_classes_have(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and node.name in BASES:
            ours = {item.name for item in node.body if isinstance(item, ast.FunctionDef)} - {"__init__"}
            for api in APIS.values():
                assert ours <= set(api["classes"][BASES[node.name]]["attributes"]), node.name


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def f(trt, config): config.set_flag(trt.BuilderFlag.FP16)", "trt.BuilderFlag.FP16 is not in tensorrt-11.4"),
        ("def f(config): config.set_compute_capability(1, 0)", "set_compute_capability is not in tensorrt-11.4"),
        ("def f(shop): shop.builder.max_batch_size = 1", "builder.max_batch_size is in no API at all"),
        ("def f(config):\n if hasattr(config, 'set_compute_capability'): config.int8_calibrator = 1",
         "config.int8_calibrator is not in tensorrt_rtx-1.7"),
    ],
)  # fmt: skip
def test_a_removed_name_is_found(code: str, problem: str) -> None:
    assert problem in "\n".join(missing(code))


def test_an_object_without_a_known_name_is_found() -> None:
    assert untyped_makers("c = builder.create_builder_config()") != []
    assert untyped_makers("layer.get_output(0).precision = 1") != []


def test_a_guarded_name_of_one_api_is_allowed() -> None:
    code = "def f(config):\n if hasattr(config, 'set_compute_capability'): config.num_compute_capabilities = 1"
    assert missing(code) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_rtx_snapshot_is_what_the_installed_module_has() -> None:
    import tensorrt_rtx

    if not str(tensorrt_rtx.__version__).startswith("1.7."):
        pytest.skip(f"the snapshot is of 1.7, installed is {tensorrt_rtx.__version__}")
    spec = importlib.util.spec_from_file_location("make_snapshot", ROOT / "snapshots" / "make_snapshot.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.describe(tensorrt_rtx, "tensorrt_rtx")["classes"] == APIS["tensorrt_rtx-1.7"]["classes"]
