"""What the images weigh, layer by layer: ``python tests/bench/image_sizes.py [FLAVOUR…]``; root, buildah, debootstrap.

Each line of docker/Dockerfile's serving image that adds something, and the largest packages in it. The image's root is
copied for every line, so it takes minutes and some 10 GB for a while.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.containers import Image, Workshop, missing

_MB = 1_000_000


def main(flavours: list[str]) -> int:
    if reason := missing():
        print(f"image_sizes: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder) / "shop")
        base = shop.make_base()
        for flavour in flavours or ["cpu", "rtx"]:
            image = shop.build("runtime", "--layers", FLAVOUR=flavour, BASE=base)
            show(image)
            with shop.opened(image) as root:
                show_packages(root)
        shop.close()
    return 0


def show(image: Image) -> None:
    print(f"{image.name}: {sum(size for _, size in image.layers) / _MB:,.0f} MB")
    for line, size in image.layers:
        if size >= _MB // 10:
            print(f"  {size / _MB:8.1f} MB  {line.removeprefix('/bin/sh -c ').removeprefix('#(nop) ')[:80]}")


def show_packages(root: Path) -> None:
    (packages,) = root.glob("opt/engineworks/lib/python3*/site-packages")
    sizes = {place.name: weigh(place) for place in packages.iterdir()}
    for name in sorted(sizes, key=lambda name: -sizes[name])[:10]:
        print(f"  {sizes[name] / _MB:8.1f} MB  of that: {name}")


def weigh(place: Path) -> int:
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
