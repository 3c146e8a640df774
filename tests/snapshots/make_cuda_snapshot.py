"""Write the CUDA driver's functions as JSON: python make_cuda_snapshot.py cuda.h > FILE.

``cuda.h`` comes with the wheel ``nvidia-cuda-runtime``. One line a function: the name that the library exports (the
header maps ``cuMemAlloc`` to ``cuMemAlloc_v2``) and the types of its arguments.
"""

import json
import re
import sys
from pathlib import Path

FUNCTION = re.compile(r"^CUresult CUDAAPI (cu\w+)\(([^)]*)\);", re.MULTILINE)
RENAMED = re.compile(r"^ *# *define (cu\w+) +(?:__CUDA_API_PT[DS][SZ]\()?(cu\w+_v\d+|cu\w+WithFlags)\)?$", re.MULTILINE)


def kind(argument: str) -> str:
    """Drop the argument's name from its declaration."""
    words = argument.replace("*", " * ").split()
    last = words[-1]
    named = len(words) > 1 and re.fullmatch(r"\w+", last) and last not in {"int", "long"}
    return " ".join(words[:-1] if named else words)


def main(argv: list[str]) -> int:
    """Print the snapshot of the header named."""
    text = Path(argv[0]).read_text("utf-8")
    version = re.search(r"^#define CUDA_VERSION (\d+)", text, re.MULTILINE)
    assert version is not None
    exported = dict(RENAMED.findall(text))
    found: dict[str, list[str]] = {}
    for name, arguments in FUNCTION.findall(text):
        given = [] if arguments.strip() in {"", "void"} else arguments.split(",")
        found.setdefault(exported.get(name, name), [kind(argument) for argument in given])
    lines = (f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    print(f'{{"version": {version[1]}, "functions": {{\n' + ",\n".join(lines) + "\n}}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
