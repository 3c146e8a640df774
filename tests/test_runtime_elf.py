"""The libraries that a library asks for are read as the loader reads them."""

import struct
from pathlib import Path

import pytest

from engineworks.runtime.elf import needed


def elf(names: list[str]) -> bytes:
    """The least 64-bit file that has a dynamic section: a header, the names, the entries, three sections."""
    text = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    entries = b"".join(struct.pack("<QQ", 1, text.index(name.encode())) for name in names) + struct.pack("<QQ", 0, 0)
    strings, dynamic = 64, 64 + len(text)
    sections = dynamic + len(entries)
    header = b"\x7fELF\x02\x01".ljust(40, b"\0") + struct.pack("<Q10xHHH", sections, 64, 3, 0)
    rows = [(0, 0, 0, 0, 0, 0, 0, 0), (0, 3, 0, 0, strings, len(text), 0, 0), (0, 6, 0, 0, dynamic, len(entries), 1, 0)]
    return header.ljust(64, b"\0") + text + entries + b"".join(struct.pack("<IIQQQQII16x", *row) for row in rows)


def test_the_names_come_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "x.so").write_bytes(elf(["libnvinfer.so.10", "libc.so.6"]))
    assert needed(tmp_path / "x.so") == ("libnvinfer.so.10", "libc.so.6")


@pytest.mark.parametrize("content", [b"", b"text", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(99), elf(["libm.so"])[:90]])
def test_what_is_no_such_file_asks_for_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.so").write_bytes(content)
    assert needed(tmp_path / "x.so") == ()
    assert needed(tmp_path / "absent.so") == ()
