import re
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from engineworks.models import WeightsError, find
from engineworks.models.weights import build_network, load_state, read_checkpoint

STATE = {"conv.weight": torch.arange(54.0).reshape(2, 3, 3, 3), "conv.bias": torch.tensor([0.5, -0.5])}


class Small(nn.Module):
    """A module of this file: pickled whole, it needs this file's code to load."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.norm = nn.BatchNorm2d(2)


def saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def same(read: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return read.keys() == expected.keys() and all(torch.equal(read[key], expected[key]) for key in read)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older than torch 1.6"])
def test_a_torch_file_is_read(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "w.pth", OrderedDict(STATE), _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(path), STATE)


def test_a_safetensors_file_is_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    assert same(read_checkpoint(tmp_path / "w.safetensors"), STATE)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, wrapper: str) -> None:
    path = saved(tmp_path / "w.pt", {"epoch": 3, wrapper: STATE, "arch": "small"})
    assert same(read_checkpoint(path), STATE)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_wrappers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    path = saved(tmp_path / "w.pth", {prefix + key: value for key, value in STATE.items()})
    assert same(read_checkpoint(path), STATE)


def test_a_name_that_only_sometimes_has_a_prefix_keeps_it(tmp_path: Path) -> None:
    mixed = {"module.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert same(read_checkpoint(saved(tmp_path / "w.pth", mixed)), mixed)


def test_a_pickled_module_is_refused_with_the_line_that_mends_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", Small())
    with pytest.raises(WeightsError, match=r"pickled objects.*torch\.save\(model\.state_dict\(\)") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.ReLU()), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"pickled objects"):
        read_checkpoint(tmp_path / "w.pt")


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "sprung",))

    with pytest.raises(WeightsError, match="pickled objects"):
        read_checkpoint(saved(tmp_path / "w.pth", {"weight": Trap()}))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([torch.zeros(1)], "a list"),
        ({}, "an empty dict"),
        ({"lr": 0.1, "weight": torch.zeros(1)}, "a dict whose 'lr' is a float"),
        (torch.zeros(3), "a Tensor"),
    ],
)
def test_what_is_no_state_dict_is_named_and_refused(tmp_path: Path, content: object, named: str) -> None:
    with pytest.raises(WeightsError, match=rf"expected a state dict .*, got {re.escape(named)}\. Save"):
        read_checkpoint(saved(tmp_path / "w.pth", content))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "text", "zeros", "empty"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(STATE, path)
    else:
        safetensors.torch.save_file(STATE, path)
    whole = path.read_bytes()
    damaged = {"truncated": whole[: len(whole) // 2], "text": b"<html>404</html>", "zeros": bytes(64), "empty": b""}
    path.write_bytes(damaged[damage])
    with pytest.raises(WeightsError, match=r"Copy or download it again\.$") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_absent_file_a_folder_and_an_unknown_kind_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="found no such file"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="found a folder"):
        read_checkpoint(tmp_path)
    (tmp_path / "w.h5").write_text("?")
    with pytest.raises(WeightsError, match=r"expected \.safetensors, \.pth or \.pt, got '\.h5'"):
        read_checkpoint(tmp_path / "w.h5")


def test_missing_and_unexpected_names_are_counted_and_the_first_five_listed() -> None:
    state = {f"layer{i}.weight": torch.zeros(1) for i in range(7)} | {"conv.bias": torch.zeros(2)}
    message = (
        r"expected 7 tensors, got 8; 5 missing \(conv\.weight, norm\.weight, norm\.bias, norm\.running_mean, "
        r"norm\.running_var\); 7 unexpected \(layer0\.weight, .*, layer4\.weight, \.\.\.\)"
    )
    with pytest.raises(WeightsError, match=message):
        load_state(Small(), state)


def test_a_shape_that_differs_is_named_with_both_shapes() -> None:
    state = Small().state_dict() | {"conv.bias": torch.zeros(9)}
    with pytest.raises(WeightsError, match=r"1 shapes differ \(conv\.bias expected \(2,\), got \(9,\)\)"):
        load_state(Small(), state)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    state = Small().state_dict()
    state["norm.weight"][1] = bad
    with pytest.raises(WeightsError, match=r"NaN or infinity in 1 tensors \(norm\.weight\)"):
        load_state(Small(), state)


def test_finite_weights_whose_sum_overflows_are_taken() -> None:
    state = Small().state_dict()
    state["norm.weight"].fill_(3e38)
    load_state(Small(), state)


def test_a_refused_checkpoint_changes_nothing() -> None:
    module = Small()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(WeightsError):
        load_state(module, Small().state_dict() | {"conv.bias": torch.zeros(9)})
    assert same(module.state_dict(), before)


def test_half_precision_weights_are_widened_to_the_modules_own_type() -> None:
    module = Small()
    load_state(module, {key: value.half() for key, value in Small().state_dict().items()})
    assert {value.dtype for key, value in module.state_dict().items() if "tracked" not in key} == {torch.float32}


def test_old_checkpoints_without_batch_counters_are_taken() -> None:
    state = Small().state_dict()
    del state["norm.num_batches_tracked"]
    load_state(Small(), state)


def test_googlenet_takes_a_checkpoint_without_its_auxiliary_heads() -> None:
    network = find("googlenet")
    whole = build_network(network, seed=1)
    lean = {key: value for key, value in whole.state_dict().items() if not key.startswith("aux")}
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loaded = build_network(network, lean)
    assert torch.equal(loaded(image), whole(image))
    assert not any(value.is_meta for value in loaded.state_dict().values())


def test_a_network_is_built_from_a_checkpoint_without_a_copy() -> None:
    network = find("lenet5")
    state = dict(build_network(network, seed=2).state_dict())
    loaded = build_network(network, state)
    assert loaded.get_parameter("f6.weight").data_ptr() == state["f6.weight"].data_ptr()


def test_a_built_network_is_ready_to_run() -> None:
    network = build_network(find("lenet5"))
    assert not any(part.training for part in network.modules())
    assert not any(value.requires_grad for value in network.parameters())


def test_another_networks_checkpoint_is_refused() -> None:
    with pytest.raises(WeightsError, match="Is it another network's"):
        build_network(find("resnet50"), build_network(find("lenet5")).state_dict())


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
def test_numbers_of_another_kind_are_refused_by_name(kind: torch.dtype) -> None:
    state = Small().state_dict()
    name = next(iter(state))
    state[name] = state[name].to(kind)
    with pytest.raises(WeightsError, match=rf"no plain numbers of the kind expected \({name} {kind}\)"):
        load_state(Small(), state)


@pytest.mark.parametrize("make", [lambda x: x.to_sparse(), lambda x: x.to("meta")], ids=["sparse", "meta"])
def test_tensors_whose_values_are_not_there_are_refused_by_name(make: Callable[[Tensor], Tensor]) -> None:
    state = Small().state_dict()
    name = next(iter(state))
    state[name] = make(state[name])
    with pytest.raises(WeightsError, match=f"no plain numbers of the kind expected .{name}"):
        load_state(Small(), state)


def test_a_file_that_pickle_wrote_itself_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    import pickle  # noqa: TID251 # what a stranger may hand over

    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps({"weight": [1.0], "made": Fraction(1, 2)}))
    with pytest.raises(WeightsError, match=r"expected a state dict, got pickled objects or code\. Save the tensors"):
        read_checkpoint(path)
