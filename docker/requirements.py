"""Print what a distribution needs, by its pyproject.toml: ``requirements.py pyproject.toml EXTRA…``.

For an image: what changes seldom is installed in a layer of its own, before our own code. ``cpu`` is no extra; it adds
nothing.
"""

import sys
import tomllib
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Print the requirements; return 2 where an extra is unknown."""
    project = tomllib.loads(Path(arguments[0]).read_text("utf-8"))["project"]
    extras = project["optional-dependencies"] | {"cpu": []}
    if unknown := [name for name in arguments[1:] if name not in extras]:
        print(f"requirements: {unknown[0]!r} is none of {', '.join(sorted(extras))}", file=sys.stderr)
        return 2
    wanted = [*project["dependencies"], *(line for name in arguments[1:] for line in extras[name])]
    print("\n".join(dict.fromkeys(wanted)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
