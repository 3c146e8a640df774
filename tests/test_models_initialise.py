import pytest
import torch
from torch import Tensor, nn

from engineworks.models import find
from engineworks.models.initialise import initialise, synthetic_images
from engineworks.models.weights import build_network

FAST = ("lenet5", "alexnet", "googlenet", "resnet18")
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("alexnet-paper", "googlenet-paper", "plain34", "resnet50", "resnet152-paper", "vgg19")
]  # every kind, and the deepest of each

FIXED = ("1.weight", "1.bias", "1.num_batches_tracked")  # batch norm scales by 1 and moves by 0 at first


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_for(name: str, batch: int) -> dict[str, Tensor]:
    """Two kinds that no initialisation has seen."""
    shape, spread = find(name).input_shape, find(name).input_spread
    return {
        "structured": synthetic_images(2 * batch, shape, seeded(99))[:batch] * spread,
        "white noise": torch.randn(batch, *shape, generator=seeded(98)) * spread,
    }


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_random_weights_tell_one_input_from_another(name: str) -> None:
    """Outputs that do not vary would hide every fault in an export."""
    network = build_network(find(name), seed=3)
    for kind, images in images_for(name, 8).items():
        scores = network(images)
        assert scores.isfinite().all()
        best = scores.argmin(1) if find(name).scores == "distances" else scores.argmax(1)
        assert len(best.unique()) >= 3, (name, kind)
        # the answer must depend on the image more than a tenth as much as on the class
        assert scores.std(0).mean() > 0.1 * scores.std(1).mean(), (name, kind)


@pytest.mark.parametrize("name", ["alexnet", pytest.param("googlenet-paper", marks=pytest.mark.slow)])
def test_scores_of_a_deep_network_without_batch_norm_neither_die_nor_explode(name: str) -> None:
    network = build_network(find(name), seed=4)
    for images in images_for(name, 4).values():
        assert 0.1 < float(network(images).std()) < 10  # the last layer is fitted to spread 1


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    states = []
    for seed in (5, 5, 6):
        module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3))
        initialise(module, (3, 9, 9), seed)
        states.append(module.state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if key not in FIXED)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    build_network(find("lenet5"), seed=1)
    build_network(find("resnet18"), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_norm_gets_the_statistics_of_the_pass_and_its_momentum_back() -> None:
    norm = nn.BatchNorm2d(2, momentum=0.25)
    module = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), norm, nn.ReLU())
    initialise(module, (1, 8, 8), 0, batch=6)
    generator = seeded(0)
    bound = (6 / 9) ** 0.5
    weight = torch.empty(2, 1, 3, 3).uniform_(-bound, bound, generator=generator)
    before = nn.functional.conv2d(synthetic_images(6, (1, 8, 8), generator), weight)
    variance, mean = torch.var_mean(before, (0, 2, 3))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # two float32 ways to one mean of 216 numbers: some units in the last place
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-5, atol=1e-6)
    assert norm.momentum == 0.25
    assert not any(part.training for part in module.modules())


def test_a_layer_with_a_bias_is_fitted_to_mean_0_and_spread_1() -> None:
    layer = nn.Conv2d(3, 5, 3)
    initialise(layer, (3, 9, 9), 0, batch=4)
    generator = seeded(0)
    torch.empty_like(layer.weight).uniform_(generator=generator)  # what the weights drew
    with torch.no_grad():
        output = layer(synthetic_images(4, (3, 9, 9), generator))
    variance, mean = torch.var_mean(output, (0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(5), atol=1e-5, rtol=0)
    assert float(variance.mean()) == pytest.approx(1, abs=1e-4)


def test_no_hook_stays_behind() -> None:
    network = build_network(find("alexnet"))
    assert not [part for part in network.modules() if part._forward_hooks or part._forward_pre_hooks]


def test_a_failing_pass_leaves_no_hook_and_no_training_mode() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(RuntimeError, match="channels"):
        initialise(network, (2, 9, 9), 0)
    assert not [part for part in network.modules() if part._forward_hooks or part.training]
    assert network[1].momentum == 0.1
