"""The plain text inside a TensorRT-RTX plan: its blocks, tensors and statements, as written by 1.7.1.

Undocumented, found in plans. A block begins with ``NLYM``, four bytes, and its length; it holds a ``header``,
``descriptors`` (a tensor a line), ``main`` (a statement a line) and ``shape_main``, which computes the sizes that
depend on the batch. Version 5 is a whole engine; version 4 a fused kernel of the engine before it, in their order.
Whatever is not as expected raises ``PlanError``: nothing is guessed.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from engineworks.runtime.errors import PlanError

ENGINE, FUSED = 5, 4
_BLOCK = re.compile(rb"NLYM\xa1\xda\x1e\x00")
_SECTION = re.compile(r"^(\w+) ?\{\n(.*?)^\}$", re.MULTILINE | re.DOTALL)
_TENSOR = re.compile(
    r'  (?:sub_)?tensor=\{ .*?dims=\{ (?P<dims>.*?) \}.* name="(?P<name>[^"]*)" .*?'
    r"strides=\{ (?P<strides>.*?) \} type=(?P<type>\w+) \}"
)
_STATEMENT = re.compile(r"  (\w+)=\{ (.*)\}\s*")
_WORD = re.compile(r'"([^"]*)"|(\S+)')
_BYTES = {"float": 4, "half": 2, "bf16": 2, "int8": 1, "uint8": 1, "bool": 1, "int32": 4, "int64": 8}
_NAMES = {"float": "float32", "half": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class PlanTensor:
    """One tensor of a plan: numpy's name of its type, and its sizes and strides in numbers of elements."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    strides: tuple[str, ...] = field(repr=False)
    bytes: int
    on_host: bool = False
    """A number that steers a kernel and never crosses the GPU's memory."""


@dataclass(frozen=True)
class Statement:
    """One line of ``main``: what is done, and the text between its braces."""

    kind: str
    text: str = field(repr=False)

    def names(self, *keys: str) -> tuple[str, ...]:
        """Return the tensors' names in the first of these lists that the statement has."""
        for key in keys:
            found = re.search(rf"(?:^|\s){key}=\{{\s*((?:\"[^\"]*\"\s*)*)\}}", self.text)
            if found:
                return tuple(re.findall(r'"([^"]*)"', found[1]))
        return ()

    def value(self, key: str) -> str | None:
        """Return a plain or quoted value, as written."""
        found = re.search(rf'(?:^|\s){key} ?= ?(?:"([^"]*)"|([^\s{{"]+))', self.text)
        return None if found is None else found[1] if found[1] is not None else found[2]


@dataclass(frozen=True)
class Block:
    """One block: its version, targets, inputs, tensors by name, and what it does in order."""

    version: int
    targets: tuple[str, ...]
    inputs: tuple[str, ...]
    tensors: Mapping[str, PlanTensor] = field(repr=False)
    statements: tuple[Statement, ...] = field(repr=False)


def read_blocks(plan: bytes, batch: int | None) -> list[Block]:
    """Read every block of a plan.

    Args:
        plan: the whole file.
        batch: what a free batch counts; None where the plan's is fixed.

    Raises:
        PlanError: there is no block, or one is not written as 1.7.1 writes it.
    """
    blocks: list[Block] = []
    sizes: dict[str, int] = {}
    for text in _texts(plan):
        sections = dict(_SECTION.findall(text))
        if not {"header", "descriptors", "main"} <= sections.keys():
            raise PlanError("not readable: the plan's text has other sections than are known")
        version, targets, inputs = (_header(sections["header"], key) for key in ("version", "accelerators", "inputs"))
        if version not in {str(ENGINE), str(FUSED)}:
            raise PlanError("not readable: the plan's text is of another version than is known")
        if version == str(ENGINE):
            sizes = _sizes(sections.get("shape_main", ""), batch)
        blocks.append(
            Block(
                int(version),
                tuple(targets.split()),
                tuple(re.findall(r'"([^"]*)"', inputs)),
                dict(_tensors(sections["descriptors"], sizes)),
                tuple(_statements(sections["main"])),
            )
        )
    if not blocks or blocks[0].version != ENGINE:
        raise PlanError("not readable: the plan holds no text of an engine")
    return blocks


def _header(text: str, key: str) -> str:
    found = re.search(rf"^  {key} ?= ?(?:\{{(.*)\}}|(.*))$", text, re.MULTILINE)
    if found is None:
        raise PlanError(f"not readable: the plan's text says nothing of its {key}")
    return found[2] if found[1] is None else found[1]


def _texts(plan: bytes) -> Iterator[str]:
    for found in _BLOCK.finditer(plan):
        begin = found.end() + 8
        (length,) = struct.unpack_from("<Q", plan, found.end()) if begin <= len(plan) else (len(plan),)
        content = plan[begin : begin + length]
        if not content.startswith(b"header {\n"):
            continue  # four letters among the weights
        if len(content) != length:
            raise PlanError("not readable: the plan's text is cut")
        try:
            yield content.decode()
        except UnicodeDecodeError as error:
            raise PlanError("not readable: the plan's text is no UTF-8") from error


def _tensors(text: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, PlanTensor]]:
    for line in filter(None, text.splitlines()):
        found = _TENSOR.fullmatch(line)
        if found is None or found["type"] not in _BYTES:
            raise PlanError(f"not readable: a tensor of the plan is written in an unknown way: {line.strip()[:120]}")
        dims = tuple(_size(symbol, number, sizes) for symbol, number in _WORD.findall(found["dims"]))
        yield (
            found["name"],
            PlanTensor(
                found["name"],
                _NAMES.get(found["type"], found["type"]),
                dims,
                tuple(found["strides"].split()),
                math.prod(dims) * _BYTES[found["type"]],
                " mem_prop=100 " in line,
            ),
        )


def _size(symbol: str, number: str, sizes: Mapping[str, int]) -> int:
    if number.isdigit():
        return int(number)
    if symbol not in sizes:
        raise PlanError(
            f"not readable: a size of the plan, {symbol or number}, does not follow from the batch in a known way"
        )
    return sizes[symbol]


def _statements(text: str) -> Iterator[Statement]:
    for line in text.splitlines():
        if not line or line.startswith(" label "):
            continue
        found = _STATEMENT.fullmatch(line)
        if found is None:
            raise PlanError(f"not readable: a statement of the plan is written in an unknown way: {line.strip()[:120]}")
        yield Statement(found[1], found[2])


def _sizes(text: str, batch: int | None) -> dict[str, int]:
    """Follow ``shape_main`` from the batch to every size that is copied from it or multiplied.

    It also asserts, with messages of several lines; what is not understood gives no size, and is refused where used.
    """
    sizes: dict[str, int] = {}
    lines = (_STATEMENT.fullmatch(line) for line in text.splitlines())
    for statement in (Statement(found[1], found[2]) for found in lines if found is not None):
        given, made = statement.names("input"), statement.names("output")
        for name in given:
            if name.endswith("_shapeInput.1"):
                if batch is None:
                    raise PlanError("the plan's batch is free: pass --batch to say which one to read it for")
                sizes[name] = batch
        constant = re.fullmatch(r"(\d+)i64", statement.value("src") or "")
        values = [sizes[name] for name in given if name in sizes]
        if len(made) != 1 or len(values) != len(given):
            continue
        if statement.kind == "memset" and constant:
            sizes[made[0]] = int(constant[1])
        elif (statement.kind == "copy" and len(values) == 1) or (statement.kind == "mul" and values):
            sizes[made[0]] = math.prod(values)
    return sizes
