"""What a network takes: the name, shape and dtype of each input, and how a person writes them on the command line."""

import re
from dataclasses import dataclass

DTYPES = ("float32", "uint8", "int8", "int32", "int64", "bool")
_SIZES = r"(?P<sizes>(?:[Nn]x)?[0-9]+(?:x[0-9]+)*|[Nn])"
_SHAPE = re.compile(rf"(?:(?P<name>\S(?:.*\S)?):)?{_SIZES}(?::(?P<dtype>[a-z]\w*))?")  # a name may hold colons
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class InputSpec:
    """One input: ``shape`` is that of one row, without the batch; an empty ``name`` is for the network to fill in."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        sizes = ", ".join(("N", *map(str, self.shape)))
        return f"{self.name or 'input'} {self.dtype} ({sizes})"


def parse_shape(text: str) -> InputSpec:
    """Read ``[NAME:]SIZES[:DTYPE]``, such as ``3x224x224``, ``meta:16`` or ``ids:12:int64``.

    SIZES are those of one row; a leading ``N`` for the batch may be written and says nothing more.

    Raises:
        ValueError: something else, a size of 0, or a dtype that no engine takes.
    """
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise ValueError(f"expected [NAME:]SIZES[:DTYPE], such as 3x224x224 or ids:12:int64; got {text!r}")
    dtype = found["dtype"] or "float32"
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}; got {text!r}")
    sizes = [size for size in found["sizes"].lower().split("x") if size != "n"]
    shape = tuple(int(size) for size in sizes if len(size) <= len(str(_LARGEST)))
    if len(shape) < len(sizes) or not all(1 <= size <= _LARGEST for size in shape):
        raise ValueError(f"expected sizes of 1 or more, got {text!r}")
    return InputSpec(found["name"] or "", shape, dtype)
