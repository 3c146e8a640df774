"""Hold every value of a graph against PyTorch's, and say where an error enters.

Each layer of the original is run on the very inputs that the graph's layer had, so that an error shows where it is made
and nowhere else, and channel by channel, so that one wrong channel of many shows. What rounding may do is computed, not
guessed: a right layer of a typed graph gives what the original's gives with weights and result rounded to that type,
but for one unit in the last place and for what sums in float32 lose.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.export.half import HalfType
from engineworks.export.interpret import rounded
from engineworks.export.steps import Steps, clipping_noise, find_steps, rounding_noise
from engineworks.export.taps import Sums, Taps
from engineworks.runtime.intervals import chance
from engineworks.runtime.sketch import sketch

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

Array = npt.NDArray[Any]
_FLOAT32 = 2.0**-24  # half a unit in the last place, of a number's magnitude (IEEE 754-2019)
_UNIT = {None: 2.0**-23, "fp16": 2.0**-10, "bf16": 2.0**-7}
_SMALLEST = {None: 2.0**-126, "fp16": 2.0**-24, "bf16": 2.0**-126}
_MARGIN = 2.0  # one bit, as in every comparison


@dataclass(frozen=True, eq=False)
class Kept:
    """A few numbers of a value, as the graph has it.

    Attributes:
        values: ``(2, C, K)`` float32: of the original, and of the graph (``runtime.sketch``).
        allowed: ``(C,)`` float32: what rounding explains of each channel, alone.
    """

    values: Array
    allowed: Array


@dataclass(frozen=True)
class Layer:
    """One value of the graph beside PyTorch's.

    Attributes:
        value: its name in the graph.
        module: the PyTorch module that makes it.
        through: what else PyTorch computes on the way to it from values that the graph has too.
        db: decibels against the original's value, behind all layers before.
        alone_db: the same of this layer alone, on the inputs that it had in the graph.
        channel: where it is furthest beyond what rounding explains.
        channel_db: ``alone_db`` of that channel.
        excess: how many times as large its difference is there as it may be.
        kept: a few numbers of it, for other hosts.
    """

    value: str
    module: str
    through: tuple[str, ...]
    db: float
    alone_db: float
    channel: int
    channels: int
    channel_db: float
    excess: float
    kept: Kept | None = field(default=None, repr=False, compare=False)

    @property
    def wrong(self) -> bool:
        """Whether rounding does not explain its difference."""
        return not self.excess <= 1


def compare_layers(
    taps: Taps,
    graph: "ModelProto",
    values: Mapping[str, Array],
    inputs: Sequence[Array],
    kind: HalfType | None,
    entries: Sequence[str] = (),
    factors: Mapping[str, Array] = MappingProxyType({}),
) -> list[Layer]:
    """Compare every value that both have, in the order in which they are computed.

    Args:
        taps: the original.
        graph: whose values these are; its outputs in the order of the original's. Where it quantises, a layer may be as
            far from the original's as its steps explain, either alone or behind all before it, which corrections mend.
        values: name → what the graph computes, float32; ``(N, …)``.
        inputs: what the original is given, in its order; N rows.
        kind: the type that the graph computes in where it does not quantise; None for float32.
        entries: the graph's values that stand for the original's first inputs, where nodes before them make those.
        factors: value → by how much its channels are larger than the original's, ``(C,)`` (``calibration.equalise``).
    """
    walk = _Walk(taps, graph, values, inputs, kind, entries, factors)
    before = [walk.entry(value, array) for value, array in zip(entries, inputs, strict=False)]
    return before + [layer for name, read, module in taps.layers() if (layer := walk.layer(name, read, module))]


def first_wrong(layers: Sequence[Layer]) -> Layer | None:
    """Return the first layer whose difference rounding does not explain."""
    return next((layer for layer in layers if layer.wrong), None)


def sentence(layer: Layer) -> str:
    """Say where an error enters."""
    where = f"{layer.module or 'the network itself'} ({layer.value}" + (
        f", with {', '.join(layer.through)} before it)" if layer.through else ")"
    )
    return (
        f"The error enters at {where}: on the same inputs its channel {layer.channel} of {layer.channels} keeps "
        f"{layer.channel_db:.1f} dB, {layer.excess:.3g} times the difference that rounding explains."
    )


@dataclass
class _Walk:
    """The figures of every value, gathered in three walks along the original."""

    taps: Taps
    graph: "ModelProto"
    values: Mapping[str, Array]
    inputs: Sequence[Array]
    kind: HalfType | None
    entries: Sequence[str]
    factors: Mapping[str, Array]
    moved: dict[str, float] = field(default_factory=dict)
    found: "dict[str, torch.Tensor]" = field(default_factory=dict)
    size: dict[str, float] = field(default_factory=dict)
    true: "dict[str, torch.Tensor]" = field(default_factory=dict)
    alone: "dict[str, torch.Tensor]" = field(default_factory=dict)
    noise: "dict[str, torch.Tensor]" = field(default_factory=dict)
    between: dict[str, float] = field(default_factory=dict)
    weights: "dict[str, torch.Tensor]" = field(default_factory=dict)
    steps: Steps = field(init=False)
    read_as_weights: set[str] = field(init=False)

    def __post_init__(self) -> None:
        import torch

        given = [torch.from_numpy(array.copy()) for array in self.inputs]
        self.steps, self.read_as_weights = find_steps(self.graph), self.taps.read_as_weights()
        self._match(given)
        self.between = _between(self.graph, {*self.found, *self._names.values(), *self.entries}, self.values)
        self.taps.exact(given, self._see_true)
        self.taps.exact(given, self._see_alone, self.found)
        if self.kind is not None:
            self.taps.rounded(self.kind, given, self._see_rounded, self.found)

    def _match(self, given: "Sequence[torch.Tensor]") -> None:
        """Find each node's value in the graph: by its name, the outputs by their order."""
        import torch

        outputs = [value.name for value in self.graph.graph.output]
        self._names = {name: name for name, _, _ in self.taps.layers() if name in self.values}
        self._names |= dict(zip(self.taps.outputs(), outputs, strict=True))
        self.found = {
            name: torch.from_numpy(self.values[value].copy())
            for name, value in self._names.items()
            if value in self.values
        }
        made = [torch.from_numpy(self.values[entry].copy()) for entry in self.entries]
        for name, tensor in zip(self.taps.inputs(), (*made, *given[len(made) :]), strict=True):
            self.found[name] = tensor if self.kind is None else rounded(tensor, self.kind)

    def _see_true(self, name: str, result: "torch.Tensor") -> None:
        if self._fits(name, result):
            self.true[name] = result.clone()
            got, gain = self.found[name].reshape(result.shape), self._gain(name, result)
            self.moved[name] = self._shift(name, result * gain, got)
            self.found[name] = (got + self.moved[name]) / gain

    def _gain(self, name: str, like: "torch.Tensor") -> "torch.Tensor":
        """Return by how much a value's channels are larger in the graph, as it broadcasts; 1 where they are not."""
        import torch

        factors = self.factors.get(self._names.get(name, name))
        if factors is None or like.dim() < 2:
            return like.new_ones(1)
        each = torch.from_numpy(np.repeat(factors, like.shape[1] // len(factors))).to(like)
        return each.reshape(1, -1, *[1] * (like.dim() - 2))

    def _shift(self, name: str, result: "torch.Tensor", got: "torch.Tensor") -> float:
        """Return how far a tensor of a quantised graph stands from the original's: where 128 steps explain it."""
        apart = float((result - got).median())
        may = self.steps.shifts.get(self._names.get(name, name), ())
        return min((0.0, *may), key=lambda shift: abs(apart - shift))

    def _see_alone(self, name: str, result: "torch.Tensor") -> None:
        if name in self.read_as_weights:
            self.weights[name] = result
        self.size[name] = _rms(result)
        if self._fits(name, result):
            self.alone[name] = result.clone()
            self.size[name] = _rms(self.found[name])
            if self.kind is None or self._quantises(name):
                self.noise[name] = self._furthest(name, result)

    def _quantises(self, name: str) -> bool:
        value = self._names.get(name, name)
        return value in self.steps.read or value in self.steps.weights

    def _furthest(self, name: str, alone: "torch.Tensor") -> "torch.Tensor":
        """Return each channel's difference; of a quantised layer the smaller of the two, for it may mend others."""
        got = self.found[name].reshape(alone.shape)
        difference = _by_channel(got - alone)
        return difference.minimum(_by_channel(got - self.true[name])) if self._quantises(name) else difference

    def _see_rounded(self, name: str, result: "torch.Tensor") -> None:
        if self._fits(name, result) and not self._quantises(name):
            self.noise[name] = _by_channel(self.found[name].reshape(result.shape) - result)

    def _fits(self, name: str, result: "torch.Tensor") -> bool:
        return name in self.found and self.found[name].numel() == result.numel() and result.is_floating_point()

    def entry(self, value: str, array: Array) -> Layer:
        """Hold what the graph makes of a picture against what the original is given: bit for bit the same steps."""
        import torch

        right, got = torch.from_numpy(array.copy()), torch.from_numpy(self.values[value].copy())
        difference, signal = _by_channel(got - right), _by_channel(right)
        allowed = _MARGIN * _UNIT[None] * signal + _SMALLEST[None]
        excess = difference / allowed
        kept = Kept(np.stack([sketch(array), sketch(self.values[value])]), allowed.numpy().astype(np.float32))
        channel = int(excess.argmax())
        db = _db(_rms(right), _rms(got - right))
        worst = _db(float(signal[channel]), float(difference[channel]))
        return Layer(value, "preprocessing", (), db, db, channel, len(excess), worst, float(excess[channel]), kept)

    def layer(self, name: str, read: tuple[str, ...], module: str) -> Layer | None:
        if name not in self.noise or name in self.taps.inputs():
            return None
        alone, got = self.alone[name], self.found[name].reshape(self.alone[name].shape)
        allowed = self._allowed(name, alone, read)
        difference, signal = _by_channel(got - alone), _by_channel(alone)
        excess = self.noise[name] / allowed
        excess[~excess.isfinite()] = math.inf
        channel = int(excess.argmax())
        return Layer(
            self._names[name],
            module,
            self._through(name, read),
            _db(_rms(self.true[name]), _rms(got - self.true[name])),
            _db(_rms(alone), _rms(got - alone)),
            channel,
            len(excess),
            _db(float(signal[channel]), float(difference[channel])),
            float(excess[channel]),
            self._kept(name, allowed),
        )

    def _kept(self, name: str, allowed: "torch.Tensor") -> Kept:
        """Keep a few numbers of both; of a shifted or equalised value as the graph has it."""
        got, true = self.values[self._names[name]], self.true[name]
        gain = self._gain(name, true)
        as_there = (true * gain - self.moved[name]).numpy().reshape(got.shape)
        there = (allowed * gain.flatten()).numpy().astype(np.float32)
        same = len(there) == (got.shape[1] if got.ndim > 1 else 1)  # else the graph has it in another shape
        return Kept(np.stack([sketch(as_there), sketch(got)]), there if same else there.min(keepdims=True))

    def _allowed(self, name: str, alone: "torch.Tensor", read: tuple[str, ...]) -> "torch.Tensor":
        """Return by how much each channel may differ: a unit in the last place, and what sums lose.

        A sum of K terms of random sign loses √K half units of the length of weights times that of what they meet.
        """
        signal = _by_channel(alone)
        reads = [source for source in read if source in self.size]
        largest = max((self.size[source] for source in reads), default=0.0)
        first = next((self.found[source] for source in reads if source in self.found), None)
        sums = self.taps.sums(name, alone, first, self.weights)
        lengths = sums.lengths if sums.lengths is not None else alone.new_ones(len(signal))
        ends = sums.bias if sums.bias is not None else 0.0
        lost = math.sqrt(sums.terms) * _FLOAT32 * (lengths * largest + signal + ends)  # a bias may be added afterwards
        unit = _UNIT[self.kind]
        grid = self._grid(name, alone, sums, lengths) if self._quantises(name) else 0.0
        between = signal.new_full((1,), unit * self.between.get(self._names[name], 0.0))
        if self.factors and sums.lengths is not None:  # other weights than the original's were rounded
            between = between + unit * lengths * largest * chance(max(sums.terms, 1))
        return _MARGIN * (unit * (signal + ends) + _SMALLEST[self.kind] + lost + between + grid)

    def _grid(self, name: str, alone: "torch.Tensor", sums: Sums, lengths: "torch.Tensor") -> "torch.Tensor":
        """Return what rounding to the grids of the layer's inputs and weights costs each channel."""
        import torch

        value = self._names[name]
        power = lengths.new_zeros(len(lengths))
        for source, step in self.steps.read.get(value, ()):
            cut = clipping_noise(self.values[source], step) if source in self.values else 0.0
            power = power + (rounding_noise(step) ** 2 + cut**2) * lengths.square()
        if value in self.steps.weights:
            steps = torch.from_numpy(self.steps.weights[value]).to(power) / self._gain(name, alone).flatten().to(power)
            met = max(
                (_rms_of(self.values[s]) for s, _ in self.steps.read.get(value, ()) if s in self.values), default=0
            )
            power = power + (steps / math.sqrt(12)).square() * sums.terms * met**2
        count = min(alone.numel() // len(lengths), max(sums.terms, 1))
        return power.sqrt() * chance(count)

    def _through(self, name: str, read: tuple[str, ...]) -> tuple[str, ...]:
        """Name what PyTorch computes on the way here that the graph has no value for."""
        reads = {node: sources for node, sources, _ in self.taps.layers()}
        passed: list[str] = []
        waiting = list(read)
        while waiting:
            source = waiting.pop()
            if source in self.found or source in passed or (source not in self.alone and source not in self.size):
                continue
            passed.append(source)
            waiting.extend(reads.get(source, ()))
        return tuple(reversed(passed))


def _between(graph: "ModelProto", matched: set[str], values: Mapping[str, Array]) -> dict[str, float]:
    """Return for each matched value how large the values are that its nodes compute on the way from other such."""
    made = {output: node for node in graph.graph.node for output in node.output}
    found: dict[str, float] = {}
    for value in matched & made.keys():
        waiting, seen = list(made[value].input), set[str]()
        while waiting:
            name = waiting.pop()
            if name in matched or name in seen or name not in made:
                continue
            seen.add(name)
            waiting.extend(made[name].input)
        sizes = [_rms_of(values[name]) for name in seen if name in values and made[name].op_type != "Cast"]
        found[value] = sum(sizes)
    return found


def _rms_of(array: Array) -> float:
    return float(np.sqrt(np.square(array, dtype=np.float64).mean()))


def _rms(tensor: "torch.Tensor") -> float:
    return float(tensor.double().square().mean().sqrt())


def _by_channel(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return the root mean square of each channel, axis 1; of a tensor without such an axis, one figure."""
    if tensor.dim() < 2:
        return tensor.double().square().mean().sqrt().reshape(1)
    return tensor.double().transpose(0, 1).flatten(1).square().mean(1).sqrt()


def _db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 20 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf
