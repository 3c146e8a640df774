"""A stand-in for the ``tensorrt`` module, made from a snapshot of the real one's names.

A name that the snapshot lacks raises AttributeError here as it does there, on reading and on assigning, and no
behaviour can be given to it. A name that exists but has no behaviour says so when it is called.
"""

import enum
import importlib.machinery
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

Snapshot = dict[str, Any]
SHAPE = (-1, 3, 8, 8)


@dataclass
class Scenario:
    """How the fake compiler answers, and what it saw."""

    plan: bytes | None = b"plan"
    parsed: bool = True
    starts: bool = True
    profile_index: int = 0
    shape: tuple[int, ...] = SHAPE
    log: tuple[tuple[str, str], ...] = ()
    profiles: list[tuple[Any, ...]] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    builds: int = 0


def fake_module(snapshot: Snapshot, scenario: Scenario) -> Any:
    """Build the module: every class and name of the snapshot, with the behaviours of the scenario."""
    return make_module(snapshot, lambda module: _behaviours(module, scenario))


def make_module(snapshot: Snapshot, behave: Callable[[Any], dict[str, dict[str, Any]]]) -> Any:
    """Build the module with the behaviours that ``behave`` gives for its classes, by name."""
    module = ModuleType(snapshot["module"])
    module.__spec__ = importlib.machinery.ModuleSpec(snapshot["module"], None)
    module.__dict__["__version__"] = snapshot["version"]
    behaviours = behave(module)
    unknown = set(behaviours) - set(snapshot["classes"])
    assert not unknown, f"behaviours for classes that the snapshot lacks: {unknown}"
    for name, spec in snapshot["classes"].items():
        made = _enum(name, spec) if "members" in spec else _class(name, spec, behaviours.get(name, {}))
        setattr(module, name, made)
    return module


def _enum(name: str, spec: Snapshot) -> Any:
    return enum.IntEnum(name, spec["members"])


def _class(name: str, spec: Snapshot, behaviours: dict[str, Any]) -> type:
    kinds: dict[str, str] = spec["attributes"]
    unknown = {item for item in behaviours if not item.startswith("__")} - set(kinds)
    assert not unknown, f"behaviours for {name} that the snapshot lacks: {unknown}"

    def set_known(self: object, item: str, value: object) -> None:
        if not item.startswith("_") and item not in kinds:
            raise AttributeError(f"{name} has no attribute {item!r}")
        object.__setattr__(self, item, value)

    body = {item: _absent(name, item) if kind == "method" else None for item, kind in kinds.items()}
    return type(name, (), {**body, "__setattr__": set_known, **behaviours})


def _absent(owner: str, item: str) -> Callable[..., Any]:
    def absent(*_: object, **__: object) -> Any:
        raise NotImplementedError(f"the fake has no behaviour for {owner}.{item}")

    return absent


def _severity(name: str) -> Any:
    return SimpleNamespace(name=name)


def _make(module: Any, of: str, **properties: Any) -> Any:
    made = getattr(module, of)()
    for item, value in properties.items():
        setattr(made, item, value)
    return made


def _behaviours(trt: Any, scenario: Scenario) -> dict[str, dict[str, Any]]:
    def start(self: Any) -> None:
        self._started = True

    def new_builder(self: Any, logger: Any) -> None:
        assert logger._started, "a subclass of ILogger must call ILogger.__init__"
        for severity, message in scenario.log:
            logger.log(_severity(severity), message)
        if not scenario.starts:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.logger = logger

    def create_network(_: Any, flags: int = 0) -> Any:
        scenario.flags.append(flags)
        return _make(trt, "INetworkDefinition", num_inputs=1, num_layers=1)

    def build(self: Any, _: Any, config: Any) -> Any:
        scenario.builds += 1
        monitor = config.progress_monitor
        assert monitor._started, "a subclass of IProgressMonitor must call IProgressMonitor.__init__"
        monitor.phase_start("Building engine", None, 2)
        kept_on = all(monitor.step_complete("Building engine", step) is True for step in range(2))
        monitor.phase_finish("Building engine")
        if not kept_on:
            self.logger.log(_severity("ERROR"), "Error Code 7: BuildCanceled")
        return scenario.plan if kept_on else None

    def add_profile(_: Any, profile: Any) -> int:
        scenario.profiles.append(profile._shape)
        return scenario.profile_index

    def set_shape(self: Any, name: str, smallest: Any, usual: Any, largest: Any) -> None:
        self._shape = (name, smallest, usual, largest)

    def tensor(name: str, dtype: str) -> Any:
        return _make(trt, "ITensor", name=name, shape=scenario.shape, dtype=trt.DataType[dtype])

    layer = {
        "type": property(lambda _: trt.LayerType.CONVOLUTION),
        "num_inputs": 1,
        "get_input": lambda _, __: tensor("x", "HALF"),
        "get_output": lambda _, __: tensor("y", "HALF"),
    }
    return {
        "ILogger": {"__init__": start},
        "IProgressMonitor": {"__init__": start},
        "Builder": {
            "__init__": new_builder,
            "create_network": create_network,
            "create_builder_config": lambda _: trt.IBuilderConfig(),
            "create_optimization_profile": lambda _: trt.IOptimizationProfile(),
            "build_serialized_network": build,
        },
        "IBuilderConfig": {"add_optimization_profile": add_profile, "get_flag": lambda _, flag: flag.name == "TF32"},
        "IOptimizationProfile": {"set_shape": set_shape},
        "INetworkDefinition": {
            "get_input": lambda _, __: tensor("x", "HALF"),
            "get_layer": lambda _, __: trt.ILayer(),
        },
        "ITensor": {"get_dimension_name": lambda _, axis: "NCHW"[axis]},
        "ILayer": layer,
        "OnnxParser": {
            "__init__": lambda self, network, logger: None,
            "num_errors": property(lambda _: 0 if scenario.parsed else 1),
            "parse": lambda _, model: scenario.parsed,
            "parse_from_file": lambda _, path: scenario.parsed,
            "get_error": lambda _, __: trt.ParserError(),
        },
        "ParserError": {
            "node": lambda _: 3,
            "node_name": lambda _: "conv1",
            "node_operator": lambda _: "Conv",
            "code": lambda _: trt.ErrorCode.INVALID_NODE,
            "desc": lambda _: "the kernel\nis odd",
        },
    }
