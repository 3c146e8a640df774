"""YAML for manifests, written from plain values: what a cluster's tools read, with no library of ours to carry for it.

Strings are quoted wherever YAML could take them for something else, with JSON's escapes, which YAML knows.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/._-]*(?::[A-Za-z0-9/._-]+)*")  # 'a:b' is text, 'a: b' would be a mapping
_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}  # some reader takes them for something else


def dump(documents: Iterable[Mapping[str, Any]], comment: str = "") -> str:
    """Write mappings of strings, numbers, booleans, lists and mappings as YAML documents, in their own order.

    Args:
        documents: one or more.
        comment: lines that go before them.

    Raises:
        TypeError: a value of another kind.
    """
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + "---\n".join("\n".join(_mapping(document, "")) + "\n" for document in documents)


def _mapping(content: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in content.items():
        yield from _entry(f"{indent}{_scalar(key)}:", value, indent)


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        yield head
        yield from _mapping(value, indent + "  ")
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        yield head
        for item in value:
            yield from _item(item, indent)
    else:
        yield f"{head} {_scalar(value)}"


def _item(item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, Mapping) and item:
        first, *rest = _mapping(item, indent + "  ")
        yield f"{indent}- {first.strip()}"
        yield from rest
    else:
        yield f"{indent}- {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain else '"' + "".join(map(_sign, value)) + '"'
    if value is None or isinstance(value, bool | int | float) or value in ({}, []):
        return json.dumps(value, allow_nan=False)
    raise TypeError(f"plain_yaml: expected a string, a number, a list or a mapping, got {value!r}")


def _sign(sign: str) -> str:
    """Escape as JSON does, but for what lies past 16 bits: YAML knows no pairs of surrogates."""
    return json.dumps(sign)[1:-1] if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"
