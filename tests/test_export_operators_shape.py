"""Views, slices and joins: right at every batch size and opset, in FP16 too, or refused."""

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

PICTURE = (2, 4, 7, 6)


class Held(nn.Module):
    """Holds a token, a row of numbers and places to look at."""

    def __init__(self, run: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.run = run
        self.token = nn.Parameter(torch.randn(1, 1, 6, generator=generator))
        self.register_buffer("places", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def shuffled(x: Tensor) -> Tensor:
    """torchvision's channel shuffle."""
    rows, channels, height, width = x.size()
    return (
        x.view(rows, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(rows, channels, height, width)
    )


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return torch.cat([second, first.relu()], 1)


def parts(x: Tensor) -> Tensor:
    a, b, c = torch.split(x, [1, 2, 1], dim=-3)
    first: Tensor = x.split(2, 1)[0]  # type: ignore[no-untyped-call]
    return torch.cat((c, b, a), dim=1) + first.repeat(1, 2, 1, 1)


RIGHT: dict[str, Any] = {
    "halves, swapped": halves,
    "parts by their sizes": parts,
    "a channel shuffle": shuffled,
    "the last part first": lambda x: x.chunk(2, 1)[-1],
    "parts that nobody reads": lambda x: torch.chunk(x, 4, 1)[2],
    "taken apart": lambda x: torch.stack(x.unbind(1)[::-1], 1) + torch.stack(torch.unbind(x, -1), -1),
    "some channels": lambda x: x[:, :3] * x[:, -3:],
    "every second place": lambda x: x[..., ::2, ::2] + x[:, :, 1::2, 1:6:2].mean((2, 3), keepdim=True),
    "one channel and new axes": lambda x: torch.cat((x[:, 0].unsqueeze(1), x[:, None, -1], x[:, 1, None] * 0.5), 1),
    "transform as GoogLeNet does": lambda x: torch.unsqueeze(x[:, 0], 1) * 0.5 + x[:, 1][:, None],
    "numbers, slices and axes together": lambda x: x[:, 1, None, ..., 2:5, None],
    "an axis at the end": lambda x: x[..., None].squeeze(-1) + x[:, :, 3:4, :],
    "all of it": lambda x: x[:] + x[...] + x[:, :, :, :],
    "narrow and select": lambda x: (
        x.narrow(1, 1, 2).sum(1) + torch.select(x, 1, -1) + torch.narrow(x, -3, -1, 1).sum(1)
    ),
    "axes turned": lambda x: x.transpose(-1, -2).swapaxes(2, 3).permute(0, 3, 1, 2).movedim(1, -1) + x,
    "an axis moved": lambda x: x.movedim((1, 2), (-1, -2)) + torch.moveaxis(x, 1, 3).transpose(1, 2),
    "flattened and back": lambda x: x.flatten(2).unflatten(2, (7, -1)) + torch.unflatten(x.flatten(1), 1, (4, 7, 6)),
    "squeezed": lambda x: x.mean((2, 3), keepdim=True).squeeze(3).squeeze(-1) + x.mean((2, 3), True).squeeze((2, 3)),
    "squeezed where nothing is one": lambda x: x.squeeze(1) + x,
    "expanded": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 7, 6) + x.mean(1, True).expand_as(x),
    "expanded by its shape": lambda x: (
        x.mean(1, keepdim=True).expand(x.shape) + x.sum(2, True).expand(x.size(0), -1, 7, 6)
    ),
    "repeated": lambda x: x.repeat(1, 2, 1, 3),
    "stacked": lambda x: torch.stack([x, x * 2, x + 1], dim=2).flatten(1, 2),
    "viewed like another": lambda x: x.flatten(1).view_as(x) + x.flatten(2).reshape_as(x),
    "joined with itself alone": lambda x: torch.cat([x], 1),
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_it_is_right_about(what: str, translated: Any) -> None:
    translated(RIGHT[what], *PICTURE)


def test_a_token_is_given_to_every_row(translated: Any) -> None:
    net = Held(lambda n, x: torch.cat((n.token.expand(x.shape[0], -1, -1), x), 1))
    graph = translated(net, 2, 5, 6)
    assert {"token"} <= {tensor.name for tensor in graph.graph.initializer}
    assert [node.op_type for node in graph.graph.node] == ["Shape", "Concat", "Expand", "Concat"]


def test_parts_are_called_as_the_nodes_that_take_them(translated: Any) -> None:
    graph = translated(halves, *PICTURE)
    assert list(graph.graph.node[0].output) == ["getitem", "getitem_1"]
    assert [node.op_type for node in graph.graph.node] == ["Split", "Relu", "Concat"]


REFUSED: dict[str, tuple[Any, str]] = {
    "the first row": (lambda x: x[0], "an index into the batch"),
    "every second row": (lambda x: x[::2], "an index into the batch"),
    "an axis in front": (lambda x: x[None], "an index into the batch"),
    "a mask": (lambda x: x[x > 0], "operator gt|index"),
    "halves of the batch": (lambda x: x.chunk(2)[0], "along the batch"),
    "a squeeze of everything": (lambda x: x.squeeze(), "a squeeze over everything"),
    "a squeeze of the batch": (lambda x: x.squeeze(0), "along the batch"),
    "a transposed batch": (lambda x: x.transpose(0, 1), "along the batch"),
    "a moved batch": (lambda x: x.movedim(0, 1), "moves the batch"),
    "stacked in front": (lambda x: torch.stack((x, x)), "along the batch"),
    "the batch taken apart": (lambda x: x.unbind()[0], "along the batch"),
    "the batch repeated": (lambda x: x.repeat(2, 1, 1, 1), "repeating the batch"),
    "an axis put in front by expansion": (lambda x: x.expand(3, -1, -1, -1, -1), "moves the batch|no batch axis"),
    "a batch that is written down": (lambda x: x.mean(1, True).expand(2, 4, 7, 6), "moves the batch axis, or fixes it"),
    "places that are looked up": (Held(lambda n, x: x[:, n.places]), "other than numbers"),
    "a token of two rows": (Held(lambda n, x: n.token.expand(2, -1, -1) + x.flatten(2)[..., :6]), "along the batch"),
    "a token expanded otherwise": (Held(lambda n, x: n.token.expand(x.shape[0], 4, -1) + x[..., 0, :]), "other axes"),
    "a roll": (lambda x: x.roll(1, 2), "the operator roll"),
    "a turn": (lambda x: x.flip(2), "the operator flip"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_certain_is_refused(what: str, refusal: Any) -> None:
    net, why = REFUSED[what]
    assert re.search(why, refusal(net, *PICTURE))


places = st.one_of(
    st.integers(-4, 3),
    st.builds(slice, st.none() | st.integers(-5, 3), st.none() | st.integers(-3, 5), st.none() | st.integers(1, 3)),
    st.none(),
)


@settings(max_examples=30)
@given(index=st.lists(places, max_size=5), ellipsis=st.none() | st.integers(0, 5))
def test_any_index_behind_the_batch_is_right(index: list[Any], ellipsis: int | None, translated: Any) -> None:
    if ellipsis is not None:
        index.insert(ellipsis, ...)
    wanted = (slice(None), *index)
    try:
        part = torch.zeros(2, 4, 5, 6)[wanted]
    except IndexError:  # more axes than there are
        return
    if part.numel():
        translated(lambda x: x[wanted] * 1.0, 2, 4, 5, 6, sizes=(1, 3), half=False)


@settings(max_examples=30)
@given(order=st.permutations([1, 2, 3]), sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_any_order_and_any_split_is_right(order: list[int], sizes: list[int], translated: Any) -> None:
    total = sum(sizes)
    translated(
        lambda x: torch.cat(x.permute(0, *order).permute(0, *order).split(sizes, 1)[::-1], 1),
        2, total, total, total, sizes=(1, 3), half=False,
    )  # fmt: skip
