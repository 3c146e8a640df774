"""A stand-in for TensorRT's runtime, made from a snapshot of the real one's names, on the fake driver's memory.

Its engine computes ``scores[n, k] = (1 + sum(image[n])) * (k + 1)`` from whatever lies at the bound addresses when
its work is done. A context remembers what it was told, answers False where the real one would, and finds two of its
executions at work at once.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

Behaviours = dict[str, dict[str, Any]]
INPUT, OUTPUT = "image", "scores"


@dataclass
class Plan:
    """How the fake engine is made, what goes wrong, and what it saw."""

    row: tuple[int, ...] = (3, 8, 8)
    classes: int = 4
    profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),)
    dtype: str = "FLOAT"
    location: str = "DEVICE"
    fails: dict[str, Any] = field(default_factory=dict)
    log: tuple[tuple[str, str], ...] = ()
    validity: tuple[str, int] = ("VALID", 0)
    capturable: bool = True
    takes_strategy: bool = True
    cache: bytes = b""
    accepts_cache: bool = True
    events: list[str] = field(default_factory=list)
    addresses: list[dict[str, int]] = field(default_factory=list)
    alive: dict[str, int] = field(default_factory=dict)
    configured: dict[str, Any] = field(default_factory=dict)
    information: Callable[[int | None], str] = lambda batch: ""
    """What the inspector tells, given the batch of its context; None where it has none."""


def expected(images: Any, classes: int = 4) -> Any:
    """What the engine computes, in the same order of sums."""
    sums = images.reshape(len(images), -1).astype(np.float64).sum(axis=1, keepdims=True)
    factors = np.arange(1, classes + 1)
    return (factors + sums * factors).astype(np.float32)


def behaviours(trt: Any, plan: Plan, driver: Any) -> Behaviours:
    """The behaviours of every class that the runtime uses, for ``make_module``."""
    given: Behaviours = {
        "ILogger": {"__init__": lambda self: setattr(self, "_started", True)},
        "Runtime": _runtime(trt, plan),
        "ICudaEngine": _engine(trt, plan),
        "IExecutionContext": _context(trt, plan, driver),
        "IRuntimeConfig": {"set_execution_context_allocation_strategy": _strategy(plan)},
        "EngineInspector": _inspector(trt, plan),
        "IHostMemory": {"__bytes__": lambda self: self._content, "nbytes": property(lambda self: len(self._content))},
    }
    if is_rtx(trt):
        given |= _rtx(trt, plan)
    return given


def is_rtx(trt: Any) -> bool:
    """Whether the API has what only RTX has; the module is not filled yet, so its name tells."""
    return str(trt.__name__) == "tensorrt_rtx"


def _answer(plan: Plan, name: str, usual: Any) -> Any:
    plan.events.append(name)
    return plan.fails.get(name, usual)


def _lives(plan: Plan, kind: str) -> Behaviours:
    def born(self: Any) -> None:
        plan.alive[kind] = plan.alive.get(kind, 0) + 1

    def dies(self: Any) -> None:
        plan.alive[kind] -= 1
        plan.events.append(f"del {kind}")

    return {"__init__": born, "__del__": dies}  # type: ignore[dict-item]


class _Severity(enum.Enum):
    ERROR = 1
    WARNING = 2


def _runtime(trt: Any, plan: Plan) -> dict[str, Any]:
    def start(self: Any, logger: Any) -> None:
        assert logger._started, "a subclass of ILogger must call ILogger.__init__"
        self.logger = logger
        plan.alive["runtime"] = plan.alive.get("runtime", 0) + 1
        plan.events.append("Runtime")
        if plan.fails.get("Runtime"):
            logger.log(_Severity.ERROR, "no library")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialise(self: Any, content: bytes) -> Any:
        for severity, message in plan.log:
            self.logger.log(_Severity[severity], message)
        if _answer(plan, "deserialize_cuda_engine", True) is None:
            return None
        engine = trt.ICudaEngine()
        engine._runtime = self
        return engine

    def validity(self: Any, content: bytes) -> tuple[Any, int]:
        plan.events.append("get_engine_validity")
        return trt.EngineValidity[plan.validity[0]], plan.validity[1]

    made = {"__init__": start, "__del__": _lives(plan, "runtime")["__del__"], "deserialize_cuda_engine": deserialise}
    return made | ({"get_engine_validity": validity} if is_rtx(trt) else {})


def _engine(trt: Any, plan: Plan) -> dict[str, Any]:
    names = (INPUT, OUTPUT)

    def shape(self: Any, name: str) -> tuple[int, ...]:
        fixed = len(plan.profiles) == 1 and plan.profiles[0][0] == plan.profiles[0][2]
        return (plan.profiles[0][0] if fixed else -1, *(plan.row if name == INPUT else (plan.classes,)))

    def create_context(self: Any, runtime_config: Any = None) -> Any:
        if _answer(plan, "create_execution_context", True) is None:
            self._runtime.logger.log(_Severity.ERROR, "no memory for a context")
            return None
        context = trt.IExecutionContext()
        context._engine, context._config = self, runtime_config
        return context

    def create_inspector(self: Any) -> Any:
        return None if _answer(plan, "create_engine_inspector", True) is None else trt.EngineInspector()

    def create_config(self: Any) -> Any:
        return None if _answer(plan, "create_runtime_config", True) is None else trt.IRuntimeConfig()

    return _lives(plan, "engine") | {
        "num_io_tensors": len(names),
        "num_optimization_profiles": len(plan.profiles),
        "get_tensor_name": lambda self, index: names[index],
        "get_tensor_mode": lambda self, name: trt.TensorIOMode.INPUT if name == INPUT else trt.TensorIOMode.OUTPUT,
        "get_tensor_dtype": lambda self, name: trt.DataType[plan.dtype if name == INPUT else "FLOAT"],
        "get_tensor_location": lambda self, name: trt.TensorLocation[plan.location],
        "get_tensor_format": lambda self, name: trt.TensorFormat.LINEAR,
        "get_tensor_shape": shape,
        "get_tensor_profile_shape": lambda self, name, index: [(size, *plan.row) for size in plan.profiles[index]],
        "create_execution_context": create_context,
        "create_engine_inspector": create_inspector,
        "create_runtime_config": create_config,
    }


def _inspector(trt: Any, plan: Plan) -> dict[str, Any]:
    def information(self: Any, form: Any) -> str:
        assert form == trt.LayerInformationFormat.JSON
        context = self.execution_context
        return plan.information(None if context is None or context._shape is None else context._shape[0])

    return _lives(plan, "inspector") | {"get_engine_information": information}


def _context(trt: Any, plan: Plan, driver: Any) -> dict[str, Any]:
    lives = _lives(plan, "context")

    def born(self: Any) -> None:
        lives["__init__"](self)  # type: ignore[operator]
        self._profile, self._shape, self._addresses, self._busy = 0, None, {}, []

    def refuse(self: Any, name: str, words: str) -> bool:
        if name in plan.fails:
            self._engine._runtime.logger.log(_Severity.ERROR, words)
            return True
        return False

    def set_profile(self: Any, index: int, stream: int) -> bool:
        plan.events.append("set_optimization_profile_async")
        self._profile = index
        return not refuse(self, "set_optimization_profile_async", "no such profile")

    def set_shape(self: Any, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = plan.profiles[self._profile]
        if refuse(self, "set_input_shape", "shape out of range") or not smallest <= shape[0] <= largest:
            return False
        self._shape = tuple(shape)
        return name == INPUT

    def get_shape(self: Any, name: str) -> tuple[int, ...]:
        rows: int = plan.fails.get("get_tensor_shape", self._shape[0])
        return (rows, *(plan.row if name == INPUT else (plan.classes,)))

    def set_address(self: Any, name: str, address: int) -> bool:
        self._addresses[name] = address
        return not refuse(self, "set_tensor_address", "null address")

    def execute(self: Any, stream: int) -> bool:
        plan.events.append("execute_async_v3")
        if refuse(self, "execute_async_v3", "[myelin] launch failed"):
            return False
        if stream in driver.capturing and not plan.capturable:
            self._engine._runtime.logger.log(_Severity.ERROR, "not permitted when stream is capturing")
            return False
        plan.addresses.append(dict(self._addresses))
        driver.queue(stream, work_of(self, dict(self._addresses), self._shape, stream))
        return True

    def work_of(self: Any, at: dict[str, int], shape: tuple[int, ...], stream: int) -> Callable[[], None]:
        busy = self._busy
        if stream not in driver.capturing:
            busy.append(stream)

        def work() -> None:
            if len(set(busy)) > 1:
                driver.fault("one execution context at work on two streams")
            busy.clear()
            content = driver.read(at[INPUT], 4 * prod(shape))
            images = np.frombuffer(content, np.float32).reshape(shape)
            driver.write(at[OUTPUT], expected(images, plan.classes).tobytes())

        return work

    made = lives | {
        "__init__": born,
        "set_optimization_profile_async": set_profile,
        "set_input_shape": set_shape,
        "infer_shapes": lambda self: plan.fails.get("infer_shapes", []),
        "get_tensor_shape": get_shape,
        "set_tensor_address": set_address,
        "execute_async_v3": execute,
    }
    if is_rtx(trt):
        made["is_stream_capturable"] = lambda self, stream: plan.fails.get("is_stream_capturable", True)
    return made


def _strategy(plan: Plan) -> Callable[[Any, Any], None]:
    def remember(self: Any, strategy: Any) -> None:
        plan.configured["allocation"] = strategy.name

    return remember


def _rtx(trt: Any, plan: Plan) -> Behaviours:
    def property_of(name: str) -> property:
        def write(self: Any, value: Any) -> None:
            if plan.takes_strategy:
                plan.configured[name] = value.name
                self.__dict__[f"_{name}"] = value

        return property(lambda self: self.__dict__.get(f"_{name}"), write)

    def create_cache(self: Any) -> Any:
        return None if _answer(plan, "create_runtime_cache", True) is None else trt.IRuntimeCache()

    def fill(self: Any, content: bytes) -> bool:
        plan.events.append(f"cache read {content!r}")
        return plan.accepts_cache

    def serialise(self: Any) -> Any:
        memory = trt.IHostMemory()
        memory._content = plan.cache
        return memory

    config = {
        "set_execution_context_allocation_strategy": _strategy(plan),
        "cuda_graph_strategy": property_of("cuda_graph_strategy"),
        "dynamic_shapes_kernel_specialization_strategy": property_of("dynamic_shapes_kernel_specialization_strategy"),
        "create_runtime_cache": create_cache,
        "set_runtime_cache": lambda self, cache: plan.fails.get("set_runtime_cache", True),
    }
    return {"IRuntimeConfig": config, "IRuntimeCache": {"deserialize": fill, "serialize": serialise}}
