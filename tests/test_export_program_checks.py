"""What torch.export passes and no engine could follow is refused, with its line; what only looks like it is not."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engineworks.export.program_checks import check_program
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch


def program(run: Any, **parts: nn.Module) -> Any:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: Tensor) -> Any:
            return run(self, x)

    batch = torch.export.Dim("batch", min=1, max=8)
    example = torch.randn(2, 3, 4)
    return torch.export.export(Net().eval(), (example,), dynamic_shapes=({0: batch},), strict=False)


def attention(x: Tensor, dropout: float) -> Tensor:
    return functional.scaled_dot_product_attention(x, x, x, dropout_p=dropout)


def as_it_comes(x: Tensor) -> Tensor:
    memory = torch.empty(4)
    return x + memory.tanh()


def filled(x: Tensor) -> Tensor:
    memory = torch.empty(4)
    memory.fill_(2)
    return x + memory


@pytest.mark.parametrize(
    ("run", "why"),
    [
        (lambda n, x: x + torch.rand(1), r"draws random numbers \(aten.rand.*At test_export_program_checks.py"),
        (lambda n, x: attention(x, 0.1), r"draws random numbers .*in forward: return run"),
        (lambda n, x: functional.dropout(x), "draws random numbers"),
        (lambda n, x: as_it_comes(x), "memory that nothing was written to .*At test_export_program_checks.py"),
        (lambda n, x: x[x > 0], "the size of index depends on the data.* At "),
    ],
)
def test_it_is_refused(run: Any, why: str) -> None:
    with pytest.raises(ExportError, match=why):
        check_program(program(run), Batch(1, 4, 8))


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        (lambda n, x: attention(x, 0.0), {}),
        (lambda n, x: functional.dropout(x, 0.5, training=False), {}),
        (lambda n, x: filled(x), {}),
        (lambda n, x: n.g(x)[0], {"g": nn.GRU(4, 5, 2, dropout=0.5, batch_first=True)}),
        (lambda n, x: n.g(x)[0], {"g": nn.LSTM(4, 5, batch_first=True)}),
    ],
)
@pytest.mark.filterwarnings("default")
def test_what_may_draw_and_does_not_passes(run: Any, parts: dict[str, nn.Module]) -> None:
    check_program(program(run, **parts), Batch(1, 4, 8))


def test_another_range_than_asked_for_is_refused() -> None:
    with pytest.raises(ExportError, match="expected 1 to 16"):
        check_program(program(lambda n, x: x * 2), Batch(1, 4, 16))
