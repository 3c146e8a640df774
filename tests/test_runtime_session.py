"""A loaded bundle: every input that does not fit is named and mended, and pictures get their classes."""

import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engineworks.runtime import (
    Backend,
    BackendError,
    BundleError,
    InputError,
    Manifest,
    Prediction,
    Session,
    Tensor,
    load,
    open_bundle,
    softmax,
    write_bundle,
)
from engineworks.runtime.backend import OrtSession
from engineworks.runtime.manifest import Batch

Floats = npt.NDArray[np.float32]
Make = Callable[..., Path]
RED, GREEN, BLUE, DARK = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0))


def picture(colour: tuple[int, int, int], size: int = 12) -> npt.NDArray[np.uint8]:
    return np.full((size, size, 3), colour, np.uint8)


def rows(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((count, 3, 8, 8), np.float32)


def expected(images: Floats) -> Floats:
    """What four_classes.onnx computes."""
    means = images.mean(axis=(2, 3))
    return np.concatenate([means, 1 - means.sum(axis=1, keepdims=True)], axis=1)


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, contents: dict[str, bytes]
) -> Iterator[Session]:
    """One session for the tests that only read."""
    path = write_bundle(tmp_path_factory.mktemp("shared") / "four-fp16", manifest, contents).path
    with load(path, device="cpu", threads=1) as session:
        yield session


def answering(path: Path, scores: npt.NDArray[Any]) -> Session:
    """A session whose backend answers these rows, whatever it is asked."""
    ort = SimpleNamespace(run=lambda outputs, inputs: [scores[: len(next(iter(inputs.values())))]])
    return Session(open_bundle(path), OrtSession(ort, Backend("fake", "a test")))


# --- infer


def test_an_array_gives_the_output_as_an_array(shared: Session) -> None:
    # float32: a mean of 64 values in [0, 1] and a sum of 4, each to 2⁻²⁴ of its size at every step
    assert np.allclose(shared.infer(rows(5)), expected(rows(5)), rtol=0, atol=1e-5)


def test_a_dict_gives_a_dict(shared: Session) -> None:
    found = shared.infer({"image": rows(2)})
    assert list(found) == ["scores"]
    assert np.array_equal(found["scores"], shared.infer(rows(2)))


def test_several_inputs_and_outputs_go_by_name(two_inputs: Path) -> None:
    left, right = np.array([[1, 2, 3]], np.float32), np.array([[4, 5, 6]], np.float32)
    with load(two_inputs) as session:
        found = session.infer({"right": right, "left": left})
    assert {name: value.tolist() for name, value in found.items()} == {"sum": [[5, 7, 9]], "dot": [[32]]}


def test_a_session_shows_what_it_takes_gives_and_runs_on(shared: Session) -> None:
    assert shared.inputs == (Tensor("image", "float32", ("batch", 3, 8, 8)),)
    assert shared.outputs == (Tensor("scores", "float32", ("batch", 4)),)
    assert shared.labels == ("red", "green", "blue", "dark")
    assert shared.backend == Backend("onnxruntime-cpu", "asked for")
    assert repr(shared) == "<Session four-fp16 (four, fp16) on onnxruntime-cpu>"


WANTED = "input 'image': expected float32 (N, 3, 8, 8), got"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (rows(1).astype(np.float64), f"{WANTED} float64 (1, 3, 8, 8). Convert it: x.astype('float32')."),
        (rows(1).astype(np.float16), f"{WANTED} float16 (1, 3, 8, 8). Convert it: x.astype('float32')."),
        (rows(1).astype(">f4"), f"{WANTED} >f4 (1, 3, 8, 8). Convert it: x.astype('float32')."),
        (
            picture(RED),
            f"{WANTED} uint8 (12, 12, 3). Pass pictures to classify(), or through preprocess() first.",
        ),
        (
            np.zeros((1, 3, 8, 8), np.uint8),
            f"{WANTED} uint8 (1, 3, 8, 8). Pass pictures to classify(), or through preprocess() first.",
        ),
        (rows(1)[0], f"{WANTED} float32 (3, 8, 8). Add a batch axis: x[None]."),
        (
            np.zeros((1, 8, 8, 3), np.float32),
            f"{WANTED} float32 (1, 8, 8, 3). Put the channels first: x.transpose(0, 3, 1, 2).",
        ),
        (np.zeros((1, 3, 9, 8), np.float32), f"{WANTED} float32 (1, 3, 9, 8). Resize it to that shape."),
        (np.zeros((1, 1, 3, 8, 8), np.float32), f"{WANTED} float32 (1, 1, 3, 8, 8). Resize it to that shape."),
        (np.zeros((), np.float32), f"{WANTED} float32 (). Resize it to that shape."),
    ],
    ids=lambda value: f"{value.dtype}{value.shape}" if isinstance(value, np.ndarray) else "",
)
def test_an_array_that_does_not_fit_is_shown_and_mended(shared: Session, array: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        shared.infer(array)
    assert str(caught.value) == message


def test_the_mended_array_fits(shared: Session) -> None:
    x = rows(2)
    for mended in (x.astype("float64").astype("float32"), x[0][None], x.transpose(0, 2, 3, 1).transpose(0, 3, 1, 2)):
        shared.infer(mended)


@pytest.mark.parametrize("given", [[[1.0]], None, 5, "image", (1, 2)])
def test_what_is_no_array_is_named_by_its_type(shared: Session, given: Any) -> None:
    message = f"input 'image': expected a numpy array float32 (N, 3, 8, 8), got {type(given).__name__}."
    for inputs in (given, {"image": given}):
        with pytest.raises(InputError) as caught:
            shared.infer(inputs)
        assert str(caught.value) == message


@pytest.mark.parametrize(("size", "mend"), [(9, "Split it"), (0, "Repeat rows"), (1000, "Split it")])
def test_a_batch_outside_the_promised_sizes_is_refused(shared: Session, size: int, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        shared.infer(np.zeros((size, 3, 8, 8), np.float32))
    assert str(caught.value) == (
        f"input 'image': expected a batch of 1 to 8, got {size}. {mend}, or re-export with --batch MIN:OPT:MAX."
    )


@pytest.mark.parametrize("size", [1, 8])
def test_the_smallest_and_the_largest_batch_are_taken(shared: Session, size: int) -> None:
    assert shared.infer(rows(size)).shape == (size, 4)


@pytest.mark.parametrize(
    ("names", "got"), [(["picture"], "picture"), ([], "none"), (["image", "mask"], "image, mask"), ([1], "1")]
)
def test_a_wrong_name_is_shown_beside_the_right_one(shared: Session, names: list[Any], got: str) -> None:
    with pytest.raises(InputError) as caught:
        shared.infer(dict.fromkeys(names, rows(1)))
    assert str(caught.value) == f"infer: expected the inputs image, got {got}."


def test_one_array_for_two_inputs_is_refused(two_inputs: Path) -> None:
    with load(two_inputs) as session, pytest.raises(InputError) as caught:
        session.infer(np.zeros((1, 3), np.float32))
    assert str(caught.value) == "infer: expected a dict with left, right, got one array."


def test_two_batch_sizes_at_once_are_refused(two_inputs: Path) -> None:
    with load(two_inputs) as session, pytest.raises(InputError) as caught:
        session.infer({"left": np.zeros((1, 3), np.float32), "right": np.zeros((2, 3), np.float32)})
    assert str(caught.value) == "infer: expected one batch size for all inputs, got {'left': 1, 'right': 2}."


def test_a_view_that_is_not_contiguous_gives_the_same_answer(shared: Session) -> None:
    images = rows(4)
    view = np.asfortranarray(images)[::2, :, ::-1]
    assert np.array_equal(shared.infer(view), shared.infer(view.copy()))


def test_the_inputs_are_left_as_they_were(shared: Session) -> None:
    images = rows(3)
    shared.infer(images)
    assert np.array_equal(images, rows(3))


@settings(max_examples=30)
@given(st.integers(1, 8), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_rows_are_independent_of_their_place_and_their_neighbours(
    shared: Session, count: int, seed: int, random: Any
) -> None:
    images = rows(count, seed)
    whole = shared.infer(images)
    order = list(range(count))
    random.shuffle(order)
    assert np.array_equal(shared.infer(images[order]), whole[order])
    assert np.array_equal(np.concatenate([shared.infer(row[None]) for row in images]), whole)


def test_sixteen_threads_get_identical_rows(shared: Session) -> None:
    images = [rows(4, seed) for seed in range(16)]
    wanted = [shared.infer(image) for image in images]
    wrong: list[int] = []
    barrier = threading.Barrier(16)

    def run(number: int) -> None:
        barrier.wait()
        for _ in range(20):
            if not np.array_equal(shared.infer(images[number]), wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- open and closed


def test_a_closed_session_says_so(bundle: Path) -> None:
    session = load(bundle)
    session.close()
    session.close()
    for use in (lambda: session.infer(rows(1)), lambda: session.classify(picture(RED))):
        with pytest.raises(BackendError) as caught:
            use()
        assert str(caught.value) == "bundle four-fp16: this session is closed. Load the bundle again."


def test_a_closed_session_still_tells_what_it_was(bundle: Path) -> None:
    with load(bundle, device="cpu") as session:
        pass
    assert session.manifest.name == "four-fp16"
    assert session.backend.name == "onnxruntime-cpu"


def test_a_with_block_closes_the_session_after_an_error_too(bundle: Path) -> None:
    session = load(bundle)
    with pytest.raises(InputError), session:
        session.infer(rows(99))
    with pytest.raises(BackendError, match="is closed"):
        session.infer(rows(1))


def test_a_session_closed_by_another_thread_midway_gives_our_own_error(bundle: Path) -> None:
    session = load(bundle)
    ready = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            while True:
                session.infer(rows(8))
                ready.set()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    session.close()
    for thread in threads:
        thread.join()
    assert {type(error) for error in raised} == {BackendError}


def test_a_session_that_is_closed_while_its_inputs_are_read_gives_our_own_error(bundle: Path) -> None:
    session = load(bundle)

    class Closing(dict[str, Floats]):
        def __iter__(self) -> Iterator[str]:
            session.close()
            return super().__iter__()

    with pytest.raises(BackendError):
        session.infer(Closing(image=rows(1)))


# --- classify


def test_colours_are_named(shared: Session) -> None:
    found = shared.classify([picture(colour) for colour in (RED, GREEN, BLUE, DARK)], k=1)
    assert [[best.label for best in row] for row in found] == [["red"], ["green"], ["blue"], ["dark"]]


def test_a_prediction_is_label_index_and_share(shared: Session) -> None:
    share = float(np.e / (np.e + 3))  # scores 1, 0, 0, 0
    best = shared.classify(picture(GREEN))[0][0]
    assert best == Prediction("green", 1, pytest.approx(share, abs=1e-6))  # type: ignore[arg-type]


def test_every_form_of_a_picture_gets_the_same_classes(shared: Session, tmp_path: Path) -> None:
    file = tmp_path / "-o [red].png"
    Image.fromarray(picture(RED)).save(file)
    wanted = shared.classify(picture(RED))
    array = picture(RED)
    for form in (file, str(file), file.read_bytes(), Image.open(file), [array], np.stack([array]), iter([array])):
        assert shared.classify(form) == wanted


def test_shares_fall_and_sum_to_one(shared: Session) -> None:
    shares = [best.probability for best in shared.classify(picture((90, 20, 200)), k=4)[0]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0, abs=1e-12)


def test_more_classes_than_there_are_gives_all(shared: Session) -> None:
    assert sorted(best.index for best in shared.classify(picture(RED), k=99)[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_class_is_refused(shared: Session, k: int) -> None:
    with pytest.raises(InputError) as caught:
        shared.classify(picture(RED), k=k)
    assert str(caught.value) == f"classify: expected k of 1 or more, got {k}."


@pytest.mark.parametrize("count", [7, 8, 9, 16, 17])
def test_more_pictures_than_the_largest_batch_are_run_in_several(shared: Session, count: int) -> None:
    colours = [(RED, GREEN, BLUE)[number % 3] for number in range(count)]
    found = shared.classify([picture(colour) for colour in colours], k=1)
    assert [row[0].index for row in found] == [number % 3 for number in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_fewer_pictures_than_the_smallest_batch_get_their_own_answers_alone(make_bundle: Make, count: int) -> None:
    with load(make_bundle(batch=Batch(3, 4, 4))) as session:
        found = session.classify([picture((RED, GREEN, BLUE)[number % 3]) for number in range(count)], k=1)
    assert [row[0].index for row in found] == [number % 3 for number in range(count)]


def test_a_class_without_a_label_goes_by_its_number(make_bundle: Make) -> None:
    with load(make_bundle(labels=("red", "green"))) as session:
        assert {best.label for best in session.classify(picture(BLUE))[0]} == {"red", "green", "2", "3"}


def test_among_distances_the_lowest_is_best(make_bundle: Make) -> None:
    with load(make_bundle(scores="distances")) as session:
        found = session.classify(picture((255, 200, 100)), k=4)[0]
    assert [best.label for best in found] == ["dark", "blue", "green", "red"]
    assert [best.probability for best in found] == sorted((best.probability for best in found), reverse=True)


def test_classes_with_equal_scores_come_in_their_order(bundle: Path) -> None:
    found = answering(bundle, np.zeros((1, 4), np.float32)).classify(picture(RED), k=4)[0]
    assert [best.index for best in found] == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "float16", "float64"])
def test_the_winner_is_right_for_every_type_of_output(bundle: Path, dtype: str) -> None:
    session = answering(bundle, np.array([[3, 120, 0, 7]]).astype(dtype))
    assert [best.index for best in session.classify(picture(RED), k=4)[0]] == [1, 3, 0, 2]


def test_a_bundle_without_preprocessing_says_what_to_do(two_inputs: Path) -> None:
    with load(two_inputs) as session, pytest.raises(BundleError) as caught:
        session.classify(picture(RED))
    assert str(caught.value) == "bundle four-fp16: says nothing of preprocessing. Prepare arrays, call infer()."


def test_a_network_that_is_no_classifier_says_so(make_bundle: Make) -> None:
    outputs = (Tensor("scores", "float32", ("batch", 4)), Tensor("more", "float32", ("batch", 4)))
    session = answering(make_bundle(outputs=outputs), np.zeros((1, 4)))
    with pytest.raises(BundleError, match=r"is no classifier of pictures \(one input, one \(N, K\) output\)\.$"):
        session.classify(picture(RED))


@pytest.mark.parametrize("bad", [b"not a picture", "absent.png", np.zeros((8, 8, 3), np.float32), [], None])
def test_what_is_no_picture_is_refused(shared: Session, bad: Any) -> None:
    with pytest.raises(InputError):
        shared.classify(bad)


# --- softmax


def test_softmax_of_a_case_worked_by_hand() -> None:
    found = softmax(np.log([[1.0, 2.0, 5.0]]))
    assert np.allclose(found, [[0.125, 0.25, 0.625]], rtol=0, atol=1e-15)


def test_softmax_of_distances_takes_their_negatives() -> None:
    scores = rows(1).reshape(4, -1)
    assert np.array_equal(softmax(scores, "distances"), softmax(-scores))


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=9))
def test_softmax_sums_to_one_and_never_overflows(row: list[float]) -> None:
    found = softmax(np.array([row]))
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    assert ((found >= 0) & (found <= 1)).all()


def test_a_missing_batch_axis_is_named_and_mended() -> None:
    with pytest.raises(InputError, match=r"expected \(N, K\), got \(10,\)\. Add a batch axis"):
        softmax(np.zeros(10, np.float32))


def test_pictures_are_taken_a_batch_at_a_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, seen = 0, []

    def pictures() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield np.zeros((8, 8, 3), np.uint8)

    with load(bundle) as model:
        infer = model.infer

        def watched(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            seen.append(taken)
            return infer(batch)

        monkeypatch.setattr(model, "infer", watched)
        assert len(model.classify(pictures())) == 50
    assert seen[0] == model.manifest.batch.max < 50


def test_an_answer_that_is_not_finite_is_an_error_and_no_probability(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(bundle) as model:
        monkeypatch.setattr(model, "infer", lambda batch: np.full((len(batch), 4), np.nan, np.float32))
        with pytest.raises(BackendError, match="answered NaN or infinity"):
            model.classify(np.zeros((8, 8, 3), np.uint8))


# --- a graph that normalises


@pytest.fixture
def raw(make_bundle: Make, manifest: Manifest) -> Path:
    """four_classes.onnx behind a head that takes pictures as they are; a hand-written one."""
    onnx = pytest.importorskip("onnx", reason="onnx writes the graph")
    helper, numpy_helper = importlib.import_module("onnx.helper"), importlib.import_module("onnx.numpy_helper")

    graph = onnx.ModelProto.FromString((Path(__file__).parent / "data" / "four_classes.onnx").read_bytes())
    (picture,) = graph.graph.input
    nodes = [
        helper.make_node("Cast", ["pixels"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["t", "level"], [picture.name]),
    ]
    rest = [*graph.graph.node]
    graph.graph.ClearField("node")
    graph.graph.node.extend([*nodes, *rest])
    graph.graph.initializer.append(numpy_helper.from_array(np.array(255, np.float32), "level"))
    graph.graph.ClearField("input")
    graph.graph.input.append(helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["batch", 8, 8, 3]))
    return make_bundle(
        "raw-fp32",
        files={"model.onnx": graph.SerializeToString()},
        inputs=(Tensor("pixels", "uint8", ("batch", 8, 8, 3)),),
        preprocessing={**(manifest.preprocessing or {}), "in_graph": True},
        engines=(),
    )


def test_pictures_go_as_they_are_to_a_graph_that_normalises(raw: Path, bundle: Path) -> None:
    pictures = [picture(colour, 20) for colour in (RED, GREEN, BLUE, DARK)]
    with load(raw) as given, load(bundle) as plain:
        assert given.preprocess(pictures).dtype == np.uint8
        assert given.classify(pictures) == plain.classify(pictures)
        assert [row[0].label for row in given.classify(pictures)] == ["red", "green", "blue", "dark"]


def test_a_float_array_for_a_graph_that_normalises_is_refused_with_the_mend(raw: Path) -> None:
    with load(raw) as session:
        with pytest.raises(InputError, match=r"expected uint8 \(N, 8, 8, 3\), got float32 \(2, 8, 8, 3\)"):
            session.infer(np.zeros((2, 8, 8, 3), np.float32))
        with pytest.raises(InputError, match=r"expected uint8 \(N, 8, 8, 3\), got uint8 \(2, 3, 8, 8\)"):
            session.infer(np.zeros((2, 3, 8, 8), np.uint8))
