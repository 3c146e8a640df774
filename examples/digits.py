"""Read handwritten digits: ``python digits.py BUNDLE DIGITS.npz``."""

import sys

import numpy as np

from engineworks import runtime

SHADES = " .:-=+*#%@"


def main(bundle: str, file: str) -> None:
    """Show one digit as text with what the network reads, then its accuracy over all of them."""
    with np.load(file, allow_pickle=False) as data:
        images, labels = data["images"], data["labels"]
    with runtime.load(bundle) as model:
        print(f"{model.manifest.summary}\nbackend: {model.backend}")
        answers = [best[0] for best in model.classify(images, k=1)]
    for row in images[0][4:24:2]:
        print("".join(SHADES[int(pixel) * 9 // 255] for pixel in row))
    print(f"read as {answers[0].label} ({answers[0].probability:.1%}); it is {labels[0]}")
    right = sum(answer.index == int(label) for answer, label in zip(answers, labels, strict=True))
    print(f"{right} of {len(labels)} digits read right ({right / len(labels):.1%})")


if __name__ == "__main__":
    main(*sys.argv[1:])
