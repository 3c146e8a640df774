"""What the images weigh, layer by layer: ``python tests/bench/image_sizes.py [TARGET-FLAVOUR…]``.

Each line of docker/Dockerfile that adds something, and the largest packages in the image; ``runtime-cpu`` and
``runtime-rtx`` where none is named. The one that exports then exports LeNet-5. It needs root, buildah and debootstrap;
the image's root is copied for every line, so it takes minutes and some 10 GB for a while.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.containers import Container, Image, Workshop, missing

_MB = 1_000_000


def main(names: list[str]) -> int:
    if reason := missing():
        print(f"image_sizes: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder) / "shop")
        base = shop.make_base()
        for name in names or ["runtime-cpu", "runtime-rtx"]:
            target, _, flavour = name.partition("-")
            image = shop.build(target, "--layers", FLAVOUR=flavour, BASE=base)
            show(image)
            with shop.opened(image) as root:
                show_packages(root)
                if target == "export":
                    export(image, root, Path(folder))
        shop.close()
    return 0


def export(image: Image, root: Path, folder: Path) -> None:
    """Export a network in the container, into its own /tmp: nothing else can be written."""
    arguments = ("lenet5", "--fp16", "--no-cache", "-o", "/tmp/lenet5-fp16")
    (root / "models").mkdir()
    container = Container(image, root, folder, folder / "log", *arguments)
    print(f"  export-model {' '.join(arguments)}: status {container.process.wait(600)}\n{container.said}")


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
