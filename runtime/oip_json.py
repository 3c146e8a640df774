"""JSON of a request, read strictly: one object, no name twice, no NaN, no nesting that eats the stack.

orjson refuses NaN, Infinity, broken UTF-8 and deep nesting; of a name that comes twice it keeps the last without a
word, so names are counted. Where the count does not fit, Python's own reader, which sees every pair, decides.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from engineworks.runtime.oip_errors import Refusal, bad

_DEEPEST = 64
# Hundreds of thousands of these keep Python's lock for a tenth of a second; numbers do not.
_MOST = ((b"{", 4096, "objects"), (b"[", 65_536, "lists"), (b'"', 65_536, "quotes"))
_NAME = re.compile(rb'"\s*:')


def read_object(text: bytes | memoryview) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        Refusal: 400; not JSON, not an object, or a name that stands twice in one object.
    """
    import orjson

    text = bytes(text)
    for sign, most, what in _MOST:
        if text.count(sign) > most:
            raise bad(f"expected at most {most} {what} in the request's JSON.")
    try:
        content = orjson.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad(f"the request is not JSON: {_told(error)}.") from error
    if not isinstance(content, dict):
        raise bad(f"expected a JSON object, got {_kind(content)}.")
    if len(_NAME.findall(text)) != _names(content):
        _check_slowly(text)
    return content


def _told(error: BaseException) -> str:
    return str(error).split("\n")[0][:120]


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _names(content: Any) -> int:
    """Count names in objects, level by level; a list of numbers is passed over at its first item."""
    count, level = 0, [content]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                count += len(value)
                below.extend(item for item in value.values() if isinstance(item, (dict, list)))
            elif value and isinstance(value[0], (dict, list)):
                below.extend(item for item in value if isinstance(item, (dict, list)))
        if not below:
            return count
        level = below
    raise bad(f"the request's JSON is nested deeper than {_DEEPEST} levels.")


def _check_slowly(text: bytes) -> None:
    try:
        json.loads(text, object_pairs_hook=_once)
    except RecursionError as error:
        raise bad("the request's JSON is nested too deep.") from error


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise bad(f"the name {twice[:60]!r} stands twice in one JSON object.")


def text_field(content: dict[str, Any], name: str, where: str) -> str:
    """Return a field that must be a string that is not empty."""
    value = content.get(name)
    if not isinstance(value, str) or not value:
        raise bad(f"{where}: expected a string {name!r}, got {_kind(value) if name in content else 'none'}.")
    return value


def object_field(content: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return a field that is an object where it is given at all."""
    value = content.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad(f"{where}: expected {name!r} to be an object, got {_kind(value)}.")
    return value


def objects_field(content: dict[str, Any], name: str, most: int) -> Sequence[dict[str, Any]]:
    """Return a field that is a list of objects, none where it is absent."""
    value = content.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise bad(f"expected {name!r} to be a list of objects, got {_kind(value)}.")
    if len(value) > most:
        raise bad(f"expected at most {most} {name!r}, got {len(value)}.")
    return value


def whole_field(content: dict[str, Any], name: str, where: str, *, least: int = 0) -> int | None:
    """Return a field that is a whole number where it is given; True is none."""
    value = content.get(name)
    if value is None:
        return None
    if type(value) is not int or value < least:
        raise bad(f"{where}: expected {name!r} to be a whole number of {least} or more, got {str(value)[:40]}.")
    return value


def flag_field(content: dict[str, Any], name: str, where: str) -> bool | None:
    """Return a field that is true or false where it is given."""
    value = content.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(f"{where}: expected {name!r} to be true or false, got {_kind(value)}.")
    return value


def check_size(length: int, limit: int) -> None:
    """Refuse JSON that would keep every other request waiting while it is read."""
    if length > limit:
        raise Refusal(
            413,
            "too_large",
            f"expected at most {limit} bytes of JSON, got {length}. Send tensors as binary data (binary_data_size).",
        )
