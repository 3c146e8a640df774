"""Arrays of every kind go in, and answers of the same kind come out."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engineworks.runtime import InputError, load
from engineworks.runtime.arrays import as_numpy, giver, kept

X = np.arange(6, dtype=np.float32).reshape(2, 3)


class Other:
    """An array of a library that is neither numpy nor torch, on the host."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.array.__dlpack_device__()


class Far(Other):
    """The same on a GPU: only its own library can copy it."""

    def __init__(self, array: npt.NDArray[Any], *, copies: bool) -> None:
        super().__init__(array)
        self.copies = copies

    def __dlpack__(self, **options: Any) -> Any:
        if not (self.copies and options.get("dl_device")):
            raise BufferError("memory of a GPU\nmore")
        return self.array.__dlpack__()


def test_numpy_is_taken_as_it_is() -> None:
    assert as_numpy("x", X, "float32 (N, 3)") is X


def test_dlpack_is_taken_without_a_copy() -> None:
    found = as_numpy("x", Other(X), "float32 (N, 3)")
    assert np.shares_memory(found, X)


def test_memory_of_a_gpu_is_copied_by_its_own_library_or_refused() -> None:
    assert np.array_equal(as_numpy("x", Far(X, copies=True), "float32 (N, 3)"), X)
    with pytest.raises(InputError) as caught:
        as_numpy("x", Far(X, copies=False), "float32 (N, 3)")
    kind = __name__.split(".", maxsplit=1)[0]
    assert str(caught.value) == (
        f"input 'x': expected float32 (N, 3), got {kind} that numpy cannot read (memory of a GPU). Convert it first."
    )


@pytest.mark.parametrize("given", [None, 5, "x", [1.0], (1, 2), {1}, object])
def test_what_is_no_array_is_named_by_its_type(given: Any) -> None:
    with pytest.raises(InputError, match=rf"expected an array float32, got {type(given).__name__}\. Make it one"):
        as_numpy("x", given, "float32")


def test_a_masked_array_is_refused_for_its_mask_would_be_lost() -> None:
    with pytest.raises(InputError, match=r"got a masked array\. Fill it: x\.filled\(value\)\.$"):
        as_numpy("x", np.ma.masked_array(X, mask=X > 2), "float32 (N, 3)")


def test_numpy_answers_stay_numpy() -> None:
    assert giver([X, Other(X)]) is None
    assert giver([]) is None


def test_what_the_caller_can_still_change_is_copied_and_nothing_else() -> None:
    ours = np.ascontiguousarray(X.T)
    frozen = np.frombuffer(X.tobytes(), np.float32).reshape(2, 3)
    changing = np.frombuffer(bytearray(X.tobytes()), np.float32)
    assert kept(ours, X.T) is ours
    assert kept(frozen, frozen) is frozen
    for array in (X, X[:1], changing, as_numpy("x", Other(X), "")):
        assert not np.shares_memory(kept(array, array), array)


def test_a_module_that_is_only_called_torch_is_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert giver([Other(X)]) is None


# --- torch, where it is installed


def test_torch_goes_in_and_comes_out_on_its_device() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(X.copy())
    assert np.array_equal(as_numpy("x", tensor, ""), X)
    give = giver([tensor])
    assert give
    answer = give(X.copy())
    assert isinstance(answer, torch.Tensor)
    assert (answer.device, answer.dtype) == (tensor.device, torch.float32)


def test_a_tensor_that_wants_gradients_is_taken_without_them() -> None:
    torch = pytest.importorskip("torch")
    assert np.array_equal(as_numpy("x", torch.from_numpy(X.copy()).requires_grad_(), ""), X)


@pytest.mark.parametrize("kind", ["bfloat16", "sparse"])
def test_a_tensor_that_numpy_cannot_read_is_named(kind: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.eye(3).to_sparse() if kind == "sparse" else torch.zeros(2, 3, dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"^input 'x': expected float32, got torch torch\.\w+ that numpy cannot read"):
        as_numpy("x", tensor, "float32")


def test_tensors_beside_numpy_and_on_two_devices_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"one kind and on one device, got numpy, torch on cpu\.$"):
        giver([X, torch.zeros(1)])
    with pytest.raises(InputError, match=r"got torch on cpu, torch on meta\.$"):
        giver([torch.zeros(1), torch.zeros(1, device="meta")])


def test_a_network_answers_each_kind_in_kind(bundle: Path) -> None:
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    with load(bundle, device="cpu") as model:
        wanted = model.infer(images)
        tensor = model.infer(torch.from_numpy(images.copy()))
        rows = list(model.infer_batch(torch.from_numpy(images.copy())))
        future = model.submit({"image": torch.from_numpy(images.copy())})
        assert np.array_equal(model.infer(Other(images)), wanted)
        assert all(isinstance(answer, torch.Tensor) for answer in (tensor, *rows, future.result(30)["scores"]))
        assert np.array_equal(tensor.numpy(), wanted)
        assert np.array_equal(torch.stack(rows).numpy(), wanted)


def test_torch_is_never_imported_for_dlpack(bundle: Path) -> None:
    script = (
        "import sys, numpy as np; from engineworks import runtime\n"
        "class Other:\n"
        "    x = np.zeros((1, 3, 8, 8), np.float32)\n"
        "    def __dlpack__(self, **o): return self.x.__dlpack__(**o)\n"
        "    def __dlpack_device__(self): return self.x.__dlpack_device__()\n"
        "with runtime.load(sys.argv[1], device='cpu') as model: assert type(model.infer(Other())) is np.ndarray\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script, str(bundle)], check=True)
