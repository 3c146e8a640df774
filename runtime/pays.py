"""Does INT8 pay here? A prediction of which of two engines is faster, from what their plans move and compute.

Each kernel takes as long as its bytes at the GPU's bandwidth or its operations at the tensor cores' rate, whichever is
longer (Williams, Waterman and Patterson, Roofline, 2009); kernels follow one another. Launches, caches and how near a
kernel comes to a peak are not known without the GPU, so nothing here is a measurement: the ratio is what it is for.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from engineworks.runtime.errors import BackendError
from engineworks.runtime.xray import NOT_SEEN, Row, Xray

_CLOSE = 1.1  # below this ratio the model is not sharp enough to name a winner
_WIDTHS = ("int8", "float16", "bfloat16", "float32")  # a product of two types runs at the wider one's rate


@dataclass(frozen=True)
class Gpu:
    """A GPU's published peaks: bytes a second, and dense tensor operations a second by type of operand.

    float32 is TF32's rate, which TensorRT-RTX leaves on, where the GPU has it. ``source`` is NVIDIA's document.
    """

    name: str
    target: str
    bandwidth: float
    rates: Mapping[str, float]
    source: str


def _gpu(name: str, target: str, gigabytes: float, tera: tuple[float, float, float], source: str) -> Gpu:
    single, half, eight = (number * 1e12 for number in tera)
    rates = {"float32": single, "float16": half, "int8": eight} | ({} if target == "sm75" else {"bfloat16": half})
    return Gpu(name, target, gigabytes * 1e9, rates, source)


GPUS: tuple[Gpu, ...] = (
    _gpu("T4", "sm75", 320, (8.1, 65, 130), "NVIDIA T4 Tensor Core GPU datasheet, 951643"),
    _gpu("A100-40GB", "sm80", 1555, (156, 312, 624), "NVIDIA A100 Tensor Core GPU datasheet, 1758950 r4"),
    _gpu("A10", "sm86", 600, (62.5, 125, 250), "NVIDIA A10 Tensor Core GPU datasheet"),
    _gpu("A40", "sm86", 696, (74.8, 149.7, 299.3), "NVIDIA A40 datasheet"),
    _gpu("L4", "sm89", 300, (60, 121, 242.5), "NVIDIA L4 Tensor Core GPU datasheet; half of its figures with sparsity"),
    _gpu("L40S", "sm89", 864, (183, 362, 733), "NVIDIA L40S GPU datasheet"),
)
"""Only GPUs for which TensorRT-RTX compiles, and whose figures were found as NVIDIA's datasheets give them."""


@dataclass(frozen=True)
class Prediction:
    """Two engines on one GPU: seconds a batch, the type most of each one's work runs in, and a verdict in words."""

    gpu: str
    target: str
    seconds: tuple[float, float]
    kinds: tuple[str, str]
    bound_by_memory: tuple[float, float] = field(repr=False)
    """The share of each engine's seconds in kernels that wait for memory, 0 to 1."""
    verdict: str


def predict(first: Sequence[Xray], second: Sequence[Xray], name: str | None = None) -> list[Prediction]:
    """Predict, for each GPU that both sides have an engine for, which is faster.

    Args:
        first: the engines of A; ``second``: those of B; all for the same batch.
        name: one GPU of ``GPUS``, in any case; None for all that fit.

    Raises:
        BackendError: no such GPU is known, there is no engine for it on both sides, the batches differ, or a layer of
            an engine is seen in no kernel.
    """
    wanted = [gpu for gpu in GPUS if name is None or gpu.name.lower() == name.lower()]
    if not wanted:
        raise BackendError(f"GPU {name!r}: no figures; known are {', '.join(gpu.name for gpu in GPUS)}.")
    made = []
    for gpu in wanted:
        pair = [next((xray for xray in side if gpu.target in xray.targets), None) for side in (first, second)]
        if pair[0] is not None and pair[1] is not None:
            made.append(_compare(gpu, pair[0], pair[1]))
    if not made:
        here = " and ".join(", ".join(target for xray in side for target in xray.targets) for side in (first, second))
        names = ", ".join(f"{gpu.name} ({gpu.target})" for gpu in wanted)
        raise BackendError(f"no engine on both sides for {names}; they are for {here}. Export with --target.")
    return made


def seconds(xray: Xray, gpu: Gpu) -> tuple[float, float]:
    """Return an engine's predicted seconds a batch, and those of them in kernels that wait for memory."""
    times = [(row.bytes / gpu.bandwidth, _computing(row, gpu)) for row in xray.rows]
    return sum(map(max, times)), sum(moving for moving, computing in times if moving >= computing)


def chief_type(xray: Xray) -> str:
    """Return the type that most of an engine's multiply-adds run in."""
    shares: dict[str, int] = {}
    for row in xray.rows:
        shares[row.found] = shares.get(row.found, 0) + row.multiply_adds
    return max(shares, key=lambda kind: shares[kind]) if shares else "nothing"


def _computing(row: Row, gpu: Gpu) -> float:
    if not row.multiply_adds:
        return 0.0
    known = [kind for kind in _WIDTHS if kind in row.found.replace("×", ", ").split(", ")]
    if not known or known[-1] not in gpu.rates:
        raise BackendError(f"GPU {gpu.name}: no rate for {row.found} is known.")
    return 2 * row.multiply_adds / gpu.rates[known[-1]]


def _compare(gpu: Gpu, first: Xray, second: Xray) -> Prediction:
    if first.batch != second.batch:
        raise BackendError(f"A is for batch {first.batch}, B for {second.batch}: pass --batch, or export both alike.")
    for side, xray in zip("AB", (first, second), strict=True):
        if unseen := [layer.name for layer in xray.layers if layer.found == NOT_SEEN]:
            raise BackendError(f"{side}: what {len(unseen)} of its layers cost is not seen, {unseen[0]} among them.")
    (a, waiting_a), (b, waiting_b) = seconds(first, gpu), seconds(second, gpu)
    kinds = chief_type(first), chief_type(second)
    return Prediction(gpu.name, gpu.target, (a, b), kinds, (waiting_a / a, waiting_b / b), _verdict(a, b, kinds))


def _verdict(a: float, b: float, kinds: tuple[str, str]) -> str:
    ratio = max(a, b) / min(a, b)
    if ratio < _CLOSE:
        return f"too close to call ({ratio:.2f} ×)"
    faster = 0 if a < b else 1
    pays = ""
    if set(kinds) >= {"int8"} and kinds[0] != kinds[1]:
        pays = "INT8 pays: " if kinds[faster] == "int8" else "INT8 does not pay: "
    return f"{pays}{'AB'[faster]}, in {kinds[faster]}, would be {ratio:.2f} × as fast"


def prediction_lines(found: Sequence[Prediction]) -> Iterator[str]:
    """Yield a line for each GPU, and that none of it was measured."""
    width = max(len(one.gpu) for one in found)
    for one in found:
        times = ", ".join(
            f"{side} {time * 1e3:.3f} ms ({waiting:.0%} waiting for memory)"
            for side, time, waiting in zip("AB", one.seconds, one.bound_by_memory, strict=True)
        )
        yield f"  {one.gpu:<{width}}  {times}: {one.verdict}"
    yield "  A prediction from each plan's bytes and operations and NVIDIA's published peaks; nothing was timed."


def predictions_to_json(found: Sequence[Prediction]) -> str:
    """Write predictions as JSON, with the sources of the GPUs' figures."""
    sources = {gpu.name: gpu.source for gpu in GPUS}
    content = [asdict(one) | {"source": sources[one.gpu], "measured": False} for one in found]
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
