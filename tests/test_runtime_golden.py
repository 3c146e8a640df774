"""A bundle that was committed once: this version still reads it, byte for byte, and it still answers as PyTorch did."""

import io
from pathlib import Path

import numpy as np

from engineworks.runtime import agreement, load, open_bundle
from engineworks.runtime.manifest import dump

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "lenet5-fp16"


def test_the_manifest_of_the_committed_bundle_is_written_again_byte_for_byte() -> None:
    bundle = open_bundle(GOLDEN)
    bundle.verify()
    assert dump(bundle.manifest).encode() == (GOLDEN / "manifest.json").read_bytes()


def test_the_committed_bundle_answers_as_the_pytorch_original_did() -> None:
    bundle = open_bundle(GOLDEN)
    with np.load(io.BytesIO(bundle.read("reference.npz")), allow_pickle=False) as arrays:
        inputs, outputs = arrays["input:input"], arrays["output:output"]
    largest = bundle.manifest.batch.max
    with load(GOLDEN, device="cpu") as session:
        found = np.concatenate([session.infer(inputs[at : at + largest]) for at in range(0, len(inputs), largest)])
    required = min(rung.required_db for rung in bundle.manifest.parity)  # the bundle's own, derived bound
    assert agreement(outputs, found, bundle.manifest.scores).sqnr_db >= required


def test_the_committed_bundle_reads_digits_that_it_has_never_seen() -> None:
    with np.load(DATA / "held_out_digits.npz", allow_pickle=False) as data:
        images, labels = data["images"][:500], data["labels"][:500]
    with load(GOLDEN, device="cpu") as session:
        found = [row[0].index for row in session.classify(images, k=1)]
    assert np.mean(found == labels) > 0.95  # a swapped sign, shift or order of the pixels gives about a tenth
