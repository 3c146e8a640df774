"""Plant faults in networks and see which are caught, and whether the layer to blame is named.

    python tests/bench/planted_faults.py [--tries N] [NETWORK …]

A fault counts where it changes any value at all. "Visible" are those that the outputs alone would have shown: the rest
passes the comparison of the outputs, and only the layers tell. Clean graphs are looked at in every precision: each
layer of theirs that is blamed is a false alarm.
"""

import argparse
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

sys.path.insert(0, str(Path(__file__).parents[1]))
from planted import FAULTS  # type: ignore[import-not-found]

from engineworks.export.apart import whole
from engineworks.export.exposed import exposed_values
from engineworks.export.half import HalfType, half_weights, to_half
from engineworks.export.head import Head, behind_head, seen_before, with_head
from engineworks.export.layers import Layer, compare_layers, first_wrong
from engineworks.export.recipe import Recipe
from engineworks.export.reference import noise_floor
from engineworks.export.samples import rows, samples_for
from engineworks.export.source import resolve
from engineworks.runtime.compare import sqnr
from engineworks.runtime.preprocessing import Preprocessing

NETWORKS = ("lenet5", "alexnet-paper", "googlenet", "resnet18", "plain18")
_MARGIN = 6.02


class Subject:
    """A network exported with a head, and everything that a look at one of its graphs needs."""

    def __init__(self, name: str, cache: Path) -> None:
        source = resolve(Recipe(name, input="float32" if name == "lenet5" else "uint8"), cache, None)
        original = source.open()
        assert source.preprocessing is not None
        self.head = None if name == "lenet5" else Head(Preprocessing.from_json(source.preprocessing))
        inputs = (seen_before(original.inputs[0]),) if self.head else original.inputs
        samples, _ = samples_for(inputs, source.preprocessing, None)
        self.few = {key: rows(array, 2) for key, array in samples.items()}
        self.given = self.head.behind(self.few) if self.head else self.few
        self.exported = original.export(self.head.behind(samples) if self.head else samples, ("output",), Recipe(name))
        (self.floor,) = noise_floor(self.exported.run, self.given, self.exact(), "fp16")

    def exact(self) -> list[Any]:
        plain = with_head(self.exported.graph, self.head)
        return [exposed_values(plain, self.few, self.exported.weights, None)["output"]]

    def graph(self, kind: HalfType | None) -> ModelProto:
        graph, weights = self.exported.graph, self.exported.weights
        if kind:
            graph = to_half(graph, kind)
            weights = half_weights(graph, weights, kind)
        made: ModelProto = ModelProto.FromString(whole(with_head(graph, self.head), weights))
        return made

    def look(self, graph: ModelProto, kind: HalfType | None = "fp16") -> tuple[dict[str, Any], list[Layer]]:
        assert self.exported.taps is not None
        values = exposed_values(graph, self.few, {}, kind)
        entries = behind_head(graph, self.head)
        return values, compare_layers(self.exported.taps, graph, values, list(self.given.values()), kind, entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    arguments = parser.parse_args()
    total: Counter[str] = Counter()
    for name in arguments.networks or NETWORKS:
        subject = Subject(name, Path("weights"))
        kinds: tuple[HalfType | None, ...] = (None, "fp16", "bf16")
        for kind in kinds:
            _, layers = subject.look(subject.graph(kind), kind)
            alarms = [layer for layer in layers if layer.wrong]
            total["clean values"] += len(layers)
            total["false alarms"] += len(alarms)
            largest = max(layer.excess for layer in layers)
            print(f"{name}, {kind or 'fp32'}, clean: {len(layers)} values, {len(alarms)} false alarms "
                  f"(the furthest at {largest:.2g} of what rounding explains)", flush=True)  # fmt: skip
        total += planted(name, subject, arguments.tries)
    print(", ".join(f"{key} {number}" for key, number in total.items()))


def planted(name: str, subject: Subject, tries: int) -> Counter[str]:
    clean, _ = subject.look(subject.graph("fp16"))
    total: Counter[str] = Counter()
    for number, (what, fault) in enumerate(FAULTS.items()):
        for seed in range(tries):
            graph = subject.graph("fp16")
            value = fault(graph, np.random.default_rng([number, seed]))
            if value is None:
                break
            values, layers = subject.look(graph)
            if all(np.array_equal(values[key], clean[key]) for key in clean.keys() & values.keys()):
                print(f"{name:14} {what:48} {value}: changes nothing", flush=True)
                continue
            found = first_wrong(layers)
            db = sqnr(subject.exact()[0], values["output"])
            seen = not db >= subject.floor - _MARGIN
            value = value.removesuffix("_fp16")  # of an output, which a Cast follows
            named = found is not None and (found.value.startswith(value) or value in found.through)
            total.update({"planted": 1, "caught": int(found is not None), "named right": int(named),
                          "invisible at the output": int(not seen),
                          "invisible and caught": int(not seen and found is not None)})  # fmt: skip
            told = f"{found.value} ({found.excess:.3g} ×)" if found else "NOT CAUGHT"
            state = "named" if named else "MISNAMED" if found else ""
            out = "-inf" if not math.isfinite(db) else f"{db:.1f}"
            where = f"{'visible' if seen else 'invisible'} there (needs {subject.floor - _MARGIN:.1f})"
            print(f"{name:14} {what:48} {value}: {told} {state}; output {out} dB, {where}", flush=True)
    return total


if __name__ == "__main__":
    main()
