"""One pass: what numpy finds on the tensors themselves, the same bits for any order and batch, and what is refused."""

import math
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from engineworks.calibration.observe import Statistics, TensorStatistics, observe
from engineworks.runtime.errors import ExportError, InputError

Floats = npt.NDArray[np.float32]
GENERATOR = np.random.default_rng(0)
KERNEL = GENERATOR.standard_normal((5, 3, 3, 3)).astype(np.float32)
WEIGHT = GENERATOR.standard_normal((5, 7)).astype(np.float32)
TENSORS = ("image", "positive", "pooled", "scores")


def network(batch: int | str = "batch", kind: int = TensorProto.FLOAT) -> ModelProto:
    """Conv, ReLU, mean, Gemm; 3 channels of 40 × 40."""
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["sums"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["sums"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["means"]),
        helper.make_node("Flatten", ["means"], ["pooled"]),
        helper.make_node("Gemm", ["pooled", "weight"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["winner"], axis=1),
        helper.make_node("Log", ["sums"], ["logs"]),
    ]
    weights = [numpy_helper.from_array(KERNEL, "kernel"), numpy_helper.from_array(WEIGHT, "weight")]
    image = helper.make_tensor_value_info("image", kind, [batch, 3, 40, 40])
    winner = helper.make_tensor_value_info("winner", TensorProto.INT64, [batch, 1])
    graph = helper.make_graph(nodes, "g", [image], [winner], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


IMAGES = GENERATOR.standard_normal((11, 3, 40, 40)).astype(np.float32)
IMAGES *= np.geomspace(0.01, 30, 11, dtype=np.float32)[:, None, None, None]  # the range grows as one goes on


def batches(images: Floats, size: int) -> list[dict[str, Floats]]:
    return [{"image": images[start : start + size]} for start in range(0, len(images), size)]


def bits(statistics: Statistics) -> dict[str, tuple[Any, ...]]:
    return {
        name: (
            t.minimum,
            t.maximum,
            t.elements,
            t.histogram.exponent,
            t.histogram.zeros,
            t.histogram.counts.tobytes(),
            t.means.tobytes(),
        )
        for name, t in statistics.tensors.items()
    }


@pytest.fixture(scope="module")
def found() -> Statistics:
    return observe(network(), TENSORS, batches(IMAGES, 1))


@pytest.fixture(scope="module")
def values() -> dict[str, Floats]:
    """The same tensors, from a plain run."""
    import onnxruntime as ort

    model = network()
    model.graph.output.extend(ValueInfoProto(name=name) for name in TENSORS[1:])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {"image": IMAGES, **dict(zip(names, session.run(None, {"image": IMAGES}), strict=True))}


# --- what is found


def test_minimum_maximum_and_number_are_numpys(found: Statistics, values: Mapping[str, Floats]) -> None:
    assert (list(found.tensors), found.images) == (list(TENSORS), 11)
    for name, tensor in found.tensors.items():
        expected = values[name]
        # the plain run has a batch of 11: its sums may be another order's
        assert tensor.minimum == pytest.approx(expected.min(), rel=1e-5), name
        assert tensor.maximum == pytest.approx(expected.max(), rel=1e-5), name
        assert tensor.elements == expected.size


def test_the_means_of_the_channels_are_numpys(found: Statistics, values: Mapping[str, Floats]) -> None:
    for name, tensor in found.tensors.items():
        rows = values[name].astype(np.float64)
        axes = (0, *range(2, rows.ndim))
        # float32's half unit in the last place, through a pairwise sum of 1,600 in float32 and the network's own sums
        assert np.allclose(tensor.means, rows.mean(axes), rtol=0, atol=1e-5 * np.abs(rows).max()), name


def test_every_element_is_counted_where_asked(values: Mapping[str, Floats]) -> None:
    every = observe(network(), ["image"], batches(IMAGES, 3), every=1).tensors["image"].histogram
    edges = np.ldexp(np.arange(4097.0), every.exponent)
    assert np.array_equal(every.counts, np.histogram(np.abs(IMAGES), edges)[0])
    assert every.total == IMAGES.size


def test_a_sample_takes_every_column_of_a_large_plane_alike() -> None:
    row = np.tile(np.arange(64, dtype=np.float32), (1, 16, 64, 1))  # 64 columns: every 8th would see 8 of them
    tensor = TensorStatistics()
    tensor.add(row, 8)
    seen = tensor.histogram.counts[tensor.histogram.counts > 0]
    assert len(seen) == 63 and tensor.histogram.zeros > 0
    assert seen.max() - seen.min() <= 1
    assert row.size / tensor.histogram.total == pytest.approx(9, rel=1e-3)


def test_small_tensors_are_counted_whole(found: Statistics) -> None:
    assert found.tensors["scores"].histogram.total == 11 * 7


def test_a_batch_that_the_graph_fixes_is_filled(found: Statistics) -> None:
    assert bits(observe(network(4), TENSORS, batches(IMAGES, 3))) == bits(found)


# --- the same bits


@pytest.mark.parametrize("size", [2, 3, 11])
def test_batches_of_another_size_change_no_bit(found: Statistics, size: int) -> None:
    assert bits(observe(network(), TENSORS, batches(IMAGES, size))) == bits(found)


@pytest.mark.parametrize("seed", range(3))
def test_another_order_changes_no_bit(found: Statistics, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(11)
    assert bits(observe(network(), TENSORS, batches(IMAGES[order], 2))) == bits(found)


def test_a_serialised_graph_and_merged_halves_change_no_bit(found: Statistics) -> None:
    content = network().SerializeToString()
    halves = [observe(content, TENSORS, batches(part, 2)) for part in (IMAGES[5:], IMAGES[:5])]
    merged = halves[0].merge(halves[1])
    assert (bits(merged), merged.images) == (bits(found), 11)


def test_the_graph_given_is_left_as_it_was() -> None:
    model = network()
    before = model.SerializeToString()
    observe(model, ["positive"], batches(IMAGES[:1], 1))
    assert model.SerializeToString() == before


def test_statistics_of_other_tensors_are_not_merged(found: Statistics) -> None:
    other = observe(network(), ["image"], batches(IMAGES, 4))
    with pytest.raises(ValueError, match=r"statistics of other tensors or of another sampling cannot be merged"):
        found.merge(other)


def test_values_too_large_for_a_float32_sum_have_a_mean_all_the_same() -> None:
    tensor = TensorStatistics()
    tensor.add(np.full((1, 2, 100), 3e38, np.float32), 1)
    # a term of the exact sums has 24 bits
    assert tensor.means == pytest.approx([float(np.float32(3e38))] * 2, rel=2**-24)


# --- on the way


def test_progress_tells_done_total_and_seconds_left() -> None:
    told: list[tuple[int, int | None, float | None]] = []
    observe(network(), ["scores"], batches(IMAGES, 1), on_progress=lambda *all: told.append(all))
    assert [done for done, _, _ in told] == list(range(1, 12))
    assert {total for _, total, _ in told} == {11}
    assert told[0][2] is None and told[-1][2] == 0
    assert all(left is not None and left >= 0 for _, _, left in told[1:])


def test_progress_without_a_length_knows_no_end_unless_told() -> None:
    told: list[Any] = []
    observe(network(), ["scores"], iter(batches(IMAGES, 4)), on_progress=lambda *all: told.append(all))
    assert {(total, left) for _, total, left in told} == {(None, None)}
    observe(network(), ["scores"], iter(batches(IMAGES, 4)), on_progress=lambda *all: told.append(all), total=11)
    assert told[-1] == (11, 11, 0)


def test_images_are_read_in_another_thread_and_only_a_few_ahead() -> None:
    read: list[str] = []
    ahead: list[int] = []

    def images() -> Iterator[dict[str, Floats]]:
        for image in batches(np.repeat(IMAGES, 4, 0), 1):
            read.append(threading.current_thread().name)
            yield image

    observe(network(), ["positive"], images(), on_progress=lambda done, _, __: ahead.append(len(read) - done))
    assert set(read) == {"prefetch"}
    assert max(ahead) <= 6  # four wait, one is being put, one is being run


# --- what is refused


@pytest.mark.parametrize(("bad", "words"), [(math.nan, "NaN"), (math.inf, "an infinity"), (-math.inf, "an infinity")])
def test_what_is_not_finite_is_refused_by_tensor_and_image(bad: float, words: str) -> None:
    images = IMAGES.copy()
    images[7, 1, 2, 3] = bad
    with pytest.raises(ExportError) as caught:
        observe(network(), ["image"], batches(images, 2))
    assert str(caught.value) == (
        f"tensor 'image': expected finite values, got {words} on image 7. Look for an input that is not finite, or "
        "for weights that overflow."
    )


def test_nan_in_the_middle_of_the_network_is_named() -> None:
    with pytest.raises(ExportError, match=r"^tensor 'logs': expected finite values, got NaN on image 0"):
        observe(network(), ["image", "logs"], batches(IMAGES, 1))


def test_a_tensor_that_is_not_float32_is_refused() -> None:
    with pytest.raises(ExportError, match=r"^tensor 'winner': expected float32, got int64"):
        observe(network(), ["winner"], batches(IMAGES, 1))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (["scores", "absent"], "no tensor 'absent'"),
        ([""], "no tensor ''"),
        ([], "a list of tensors that is empty"),
        (["scores", "scores"], "names one twice"),
    ],
)
def test_an_unknown_tensor_is_named(tensors: list[str], words: str) -> None:
    with pytest.raises(ExportError, match=rf"^calibration: expected tensors of the graph, got .*{words}"):
        observe(network(), tensors, batches(IMAGES, 1))


def test_no_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"^calibration: expected at least one image, got none\.$"):
        observe(network(), ["scores"], [])


@pytest.mark.parametrize("shape", [(1, 3, 39, 40), (1, 1, 40, 40), (1, 3, 40)])
def test_an_image_that_does_not_fit_is_refused_in_one_line(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^calibration: the network cannot take this image: ") as caught:
        observe(network(), ["scores"], [{"image": np.zeros(shape, np.float32)}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch", [{"image": IMAGES[:0]}, {}, {"image": np.float32(1)}], ids=["no row", "none", "0-d"])
def test_a_batch_without_rows_is_refused(batch: Any) -> None:
    with pytest.raises(InputError, match=r"^calibration: expected inputs of one batch size of 1 or more, got"):
        observe(network(), ["scores"], [batch])


def test_a_broken_source_is_heard_of_and_its_thread_ends() -> None:
    def images() -> Iterator[dict[str, Floats]]:
        yield {"image": IMAGES[:1]}
        raise InputError("the disk is gone")

    with pytest.raises(InputError, match=r"the disk is gone"):
        observe(network(), ["scores"], images())
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_sampling_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every: expected 1 or more, got 0"):
        observe(network(), ["scores"], batches(IMAGES, 1), every=0)


def test_a_range_beyond_fp16_is_told_by_tensor(found: Statistics) -> None:
    from engineworks.calibration import beyond_fp16

    far = observe(network(), TENSORS, [{"image": IMAGES[:1] * np.float32(1e7)}])
    assert set(beyond_fp16(far.ranges)) == {"image", "positive", "pooled", "scores"} - {
        name for name, value in far.ranges.items() if value <= 65504
    }
    assert beyond_fp16(found.ranges) == {} and beyond_fp16(far.ranges)
