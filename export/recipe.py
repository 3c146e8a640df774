"""What was asked for: the flags of export-model as one value, checked before any work begins."""

import ast
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args

from engineworks.export.inputs import InputSpec
from engineworks.export.spec import Spec, parse_model
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

PrecisionName = Literal["fp32", "fp16", "bf16", "int8"]
EngineName = Literal["auto", "tensorrt", "rtx", "none"]
Simplifier = Literal["auto", "onnxsim", "onnxslim", "none"]
RouteName = Literal["auto", "fx", "dynamo"]
InputName = Literal["float32", "uint8"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]
MethodName = Literal["auto", "minmax", "percentile", "mse", "entropy"]
QualityName = Literal["fast", "normal", "high"]
RestName = Literal["fp16", "fp32"]
DEFAULT_BATCH = Batch(1, 8, 32)
BOTH_DECIDE = (
    "--max-drop and --fp16-share contradict each other: either the budget decides which layers are left out, or the "
    "share does. Pass one."
)
OLDEST_OPSET, NEWEST_OPSET = 18, 23
SMALLEST_STD, LARGEST = 1e-6, 1e6  # of --std and --mean: float32 holds every picture divided by these
LARGEST_BATCH = 65536  # it is really run; beyond this a slip of the finger is likelier than a wish


@dataclass(frozen=True)
class Recipe:
    """One export: the model, the precision, and how to get there.

    Attributes:
        model: a network of ours, ``timm:NAME``, ``torchvision:NAME``, ``file.py:factory``, ``package.module:factory``,
            a ``.onnx`` or a ``.pt2`` file.
        weights: None for those that come with it (shipped, the factory's own, else from a seed), ``imagenet`` for the
            published ones, or a file's path.
        opset: 0 takes the default of the precision: 20, or 22 for BF16, which ONNX defines for convolutions from 22
            on; a ``.onnx`` file keeps its own.
        targets: empty for all that the compiler supports.
        route: how PyTorch is left: ``fx`` is our own translation, ``dynamo`` torch.export and the stock converter,
            ``auto`` the first where it is certain, else the second.
        input: ``uint8`` takes pictures as they are, ``(N, H, W, C)``, and normalises them inside the graph.
        model_args: keyword arguments of the factory, or of the network's builder.
        shapes: inputs, where they are not known, or to be others than usual.
        mean, std, resize, interpolation: what replaces that part of the preprocessing; None leaves it.
        labels, samples: files: class names, one a line; ``.npz`` of inputs to compare on, by name.
        trust: load a ``.pt2`` file, which holds a pickle.
        calib_data, calib_images: with ``int8``, where calibration images come from (``calibration.images``), and how
            many of them are taken.
        calib_method: how ranges are chosen; ``auto`` takes what serves the network best.
        calib_cache: a file that keeps what was observed, and is read again where it is there.
        quality: how far the corrections of the int8 graph go.
        fp16_share: the share of the multiply-adds that may stay in the float type, 0 to 1.
        int8_rest: that float type.
        layers: hold every layer of every graph against PyTorch's own, not the outputs alone.
        max_drop: the percentage points of top-1 that int8 may lose against float32, 95 % sure; None for whatever it is.
            As few layers as possible then stay in the float type, whatever their share.
        data: labelled pictures to show that on (``runtime.dataset``); None for agreement on held-out images.
    """

    model: str
    precision: PrecisionName = "fp32"
    weights: str | None = None
    batch: Batch = DEFAULT_BATCH
    opset: int = 0
    engine: EngineName = "auto"
    targets: tuple[str, ...] = ()
    simplify: Simplifier = "auto"
    route: RouteName = "auto"
    input: InputName = "float32"
    model_args: tuple[tuple[str, Any], ...] = ()
    shapes: tuple[InputSpec, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation | None = None
    labels: str | None = None
    samples: str | None = None
    trust: bool = False
    calib_data: str | None = None
    calib_images: int = 128
    calib_method: MethodName = "auto"
    calib_cache: str | None = None
    quality: QualityName = "normal"
    fp16_share: float = 0.01
    int8_rest: RestName = "fp16"
    layers: bool = False
    max_drop: float | None = None
    data: str | None = None

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ExportError: an unknown word, targets for a compiler that takes none, an operator set outside 18 to 23
                (for BF16 from 22 on, for INT8 from 19 on), or a flag that this kind of model has no use for.
        """
        self._check_words()
        if self.targets and self.engine in {"none", "tensorrt"}:
            why = "builds no engine" if self.engine == "none" else "compiles for this host's GPU alone"
            raise ExportError(f"--target and --engine {self.engine} contradict each other: that {why}.")
        oldest = {"bf16": 22, "int8": 19}.get(self.precision, OLDEST_OPSET)
        if not oldest <= self.graph_opset <= NEWEST_OPSET:
            raise ExportError(
                f"--opset {self.opset} and --{self.precision}: expected an opset of {oldest} to {NEWEST_OPSET}."
            )
        self._check_kind()
        self._check_calibration()

    def _check_calibration(self) -> None:
        """Refuse calibration flags that nothing reads, and INT8 without data."""
        if self.precision == "int8":
            if self.calib_data is None:
                raise ExportError(
                    "--int8 needs --calib-data: a folder of some hundred pictures like those the network will see, a "
                    ".npz of its inputs, or module:factory."
                )
            if not 0 <= self.fp16_share <= 1:
                raise ExportError(f"--fp16-share: expected 0 to 1, or 0% to 100%, got {self.fp16_share}.")
            self._check_budget()
            return
        for name, usual in _CALIBRATION.items():
            if getattr(self, name) != usual:
                raise ExportError(
                    f"--{name.replace('_', '-')} is for --int8 alone; --{self.precision} reads no images."
                )

    def _check_budget(self) -> None:
        """Refuse a budget that cannot be, or that another flag contradicts."""
        if self.max_drop is None:
            if self.data is not None:
                raise ExportError("--data is what --max-drop is judged on; pass both.")
            return
        if not 0 < self.max_drop <= 100:
            raise ExportError(f"--max-drop: expected points above 0 and up to 100, got {self.max_drop}.")
        if self.fp16_share != _CALIBRATION["fp16_share"]:
            raise ExportError(BOTH_DECIDE)
        if self.data is None and self.calib_data == "synthetic":
            raise ExportError("--max-drop: agreement on made-up images proves nothing. Give --data, or real images.")

    def _check_words(self) -> None:
        words = {"precision": PrecisionName, "engine": EngineName, "simplify": Simplifier, "route": RouteName}
        words |= {"input": InputName, "calib_method": MethodName, "quality": QualityName, "int8_rest": RestName}
        for name, kinds in words.items():
            if getattr(self, name) not in get_args(kinds):
                raise ExportError(f"{name}: expected one of {', '.join(get_args(kinds))}, got {getattr(self, name)!r}.")
        if (self.mean is None) != (self.std is None):
            raise ExportError("--mean and --std belong together; pass both.")
        if self.std is not None and not all(SMALLEST_STD <= abs(value) <= LARGEST for value in self.std):
            raise ExportError(f"--std: expected numbers other than 0, of 1e-6 to 1e6, got {self.std}.")
        if self.mean is not None and not all(abs(value) <= LARGEST for value in self.mean):
            raise ExportError(f"--mean: expected numbers of at most 1e6, got {self.mean}.")
        names = [name for name, _ in self.model_args]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ExportError(f"--model-arg {twice} is given twice; pass it once.")

    def _check_kind(self) -> None:
        """Refuse flags that this kind of model has no use for: to pass them over would be silent."""
        kind = self.spec.kind
        if self.trust and kind != "pt2":
            raise ExportError("--trust is for .pt2 files alone, which hold a pickle.")
        if kind in {"onnx", "pt2"}:
            for flag, value in (("weights", self.weights), ("model-arg", self.model_args)):
                if value:
                    raise ExportError(f"--{flag} and {self.spec.shown} contradict each other: the file holds them.")
            if self.route == "fx" or (kind == "onnx" and self.route != "auto"):
                raise ExportError(f"--route {self.route}: {self.spec.shown} is no module that could take it.")
        if kind == "python" and self.weights == "imagenet":
            raise ExportError("--weights imagenet: none were published for a network of your own. Pass --weights FILE.")
        known = self.mean is not None or kind in {"registry", "timm", "torchvision"}
        if not known and (self.resize is not None or self.interpolation is not None or self.input == "uint8"):
            raise ExportError("--resize, --interpolation and --input uint8 need --mean and --std for this model.")

    @property
    def spec(self) -> Spec:
        """``model``, taken apart."""
        return parse_model(self.model)

    @property
    def name(self) -> str:
        """The bundle's usual name, such as ``googlenet-fp16``."""
        return f"{self.spec.name}-{self.precision}"

    @property
    def graph_opset(self) -> int:
        """The ONNX operator set of the graph."""
        return self.opset or (22 if self.precision == "bf16" else 20)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, as they stand in the manifest; files are named without their folders."""
        content = asdict(self)
        content |= {"model": self.spec.shown, "opset": self.graph_opset, "targets": list(self.targets)}
        content["model_args"] = {name: repr(value) for name, value in self.model_args}
        content["shapes"] = [f"{shape.name}:{'x'.join(map(str, shape.shape))}:{shape.dtype}" for shape in self.shapes]
        content |= {name: _listed(content[name]) for name in ("mean", "std", "resize")}
        for name in ("weights", "labels", "samples", "calib_data", "calib_cache", "data"):
            content[name] = content[name] and PurePath(content[name]).name
        if self.max_drop is not None:
            del content["fp16_share"]  # nothing read it
        return content if self.precision == "int8" else {k: v for k, v in content.items() if k not in _CALIBRATION}


_CALIBRATION = {
    name: Recipe.__dataclass_fields__[name].default
    for name in (
        "calib_data", "calib_images", "calib_method", "calib_cache", "quality", "fp16_share", "int8_rest", "max_drop",
        "data",
    )
}  # fmt: skip


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def parse_batch(text: str) -> Batch:
    """Read ``MIN:OPT:MAX``, or one number for a fixed batch.

    Raises:
        ValueError: not whole numbers with 1 ≤ MIN ≤ OPT ≤ MAX ≤ 65536.
    """
    parts = text.split(":")
    if len(parts) not in {1, 3} or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"expected MIN:OPT:MAX, such as 1:8:32, or one number; got {text!r}")
    numbers = [int(part) for part in parts] * (3 if len(parts) == 1 else 1)
    if not 1 <= numbers[0] <= numbers[1] <= numbers[2] <= LARGEST_BATCH:
        raise ValueError(f"expected 1 ≤ MIN ≤ OPT ≤ MAX ≤ {LARGEST_BATCH}, got {text!r}")
    return Batch(*numbers)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Read one number for every channel, or one for all: ``0.485,0.456,0.406``.

    Raises:
        ValueError: not one or three finite numbers.
    """
    numbers = tuple(float(part) for part in text.split(","))
    if len(numbers) not in {1, 3} or not all(abs(number) < float("inf") for number in numbers):
        raise ValueError(f"expected one number or three, such as 0.485,0.456,0.406; got {text!r}")
    return numbers


def parse_share(text: str) -> float:
    """Read a share, such as ``1%`` or ``0.01``.

    Raises:
        ValueError: not a number of 0 to 1, or of 0 % to 100 %.
    """
    number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 <= number <= 1:
        raise ValueError(f"expected 0 to 1, or 0% to 100%, got {text!r}")
    return number


def parse_points(text: str) -> float:
    """Read percentage points, such as ``0.5``; ``0.5%`` says the same.

    Raises:
        ValueError: not a number above 0 and up to 100.
    """
    number = float(text.removesuffix("%"))
    if not 0 < number <= 100:
        raise ValueError(f"expected percentage points above 0 and up to 100, got {text!r}")
    return number


def parse_resize(text: str) -> int | tuple[int, int]:
    """Read the length of the shorter side, or ``HEIGHTxWIDTH``.

    Raises:
        ValueError: neither.
    """
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 65536 for part in parts):
        raise ValueError(f"expected a number of pixels, or HEIGHTxWIDTH; got {text!r}")
    sizes = [int(part) for part in parts]
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def parse_model_arg(text: str) -> tuple[str, Any]:
    """Read ``KEY=VALUE``: a Python literal where it is one (numbers, None, True, lists), else the text itself.

    Raises:
        ValueError: no key that Python could take.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return key, value
