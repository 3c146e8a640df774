"""What was asked for: the flags of export-model as one value, checked before any work begins."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

PrecisionName = Literal["fp32", "fp16", "bf16"]
EngineName = Literal["auto", "tensorrt", "rtx", "none"]
Simplifier = Literal["auto", "onnxsim", "onnxslim", "none"]
DEFAULT_BATCH = Batch(1, 8, 32)
OLDEST_OPSET, NEWEST_OPSET = 18, 23
LARGEST_BATCH = 65536  # it is really run; beyond this a slip of the finger is likelier than a wish


@dataclass(frozen=True)
class Recipe:
    """One export: the model's name, the precision, and how to get there.

    ``weights`` is None (shipped, else a seed), ``imagenet``, or a file's path. ``targets`` is empty for all that the
    compiler supports. ``opset`` 0 takes the default of the precision: 20, or 22 for BF16, which ONNX defines for
    convolutions from 22 on.
    """

    model: str
    precision: PrecisionName = "fp32"
    weights: str | None = None
    batch: Batch = DEFAULT_BATCH
    opset: int = 0
    engine: EngineName = "auto"
    targets: tuple[str, ...] = ()
    simplify: Simplifier = "auto"

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ExportError: an unknown word, targets for a compiler that takes none, or an operator set outside 18 to 23
                (for BF16, 22 to 23).
        """
        for name, kinds in (("precision", PrecisionName), ("engine", EngineName), ("simplify", Simplifier)):
            if getattr(self, name) not in get_args(kinds):
                raise ExportError(f"{name}: expected one of {', '.join(get_args(kinds))}, got {getattr(self, name)!r}.")
        if self.targets and self.engine in {"none", "tensorrt"}:
            why = "builds no engine" if self.engine == "none" else "compiles for this host's GPU alone"
            raise ExportError(f"--target and --engine {self.engine} contradict each other: that {why}.")
        oldest = 22 if self.precision == "bf16" else OLDEST_OPSET
        if not oldest <= self.graph_opset <= NEWEST_OPSET:
            raise ExportError(
                f"--opset {self.opset} and --{self.precision}: expected an opset of {oldest} to {NEWEST_OPSET}."
            )

    @property
    def name(self) -> str:
        """The bundle's usual name, such as ``googlenet-fp16``."""
        return f"{self.model}-{self.precision}"

    @property
    def graph_opset(self) -> int:
        """The ONNX operator set of the graph."""
        return self.opset or (22 if self.precision == "bf16" else 20)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, as they stand in the manifest; a weights file is named without its folder."""
        content = asdict(self)
        content["targets"] = list(self.targets)
        content["opset"] = self.graph_opset
        if self.weights is not None:
            content["weights"] = self.weights.rsplit("/", 1)[-1]
        return content


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
