"""Which shared libraries a shared library asks for, read from its file: nothing of it is loaded."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_DYNAMIC = 6  # section type SHT_DYNAMIC; the tag 1 in it is DT_NEEDED (ELF specification 1.2, figures 1-10 and 2-10)
_HEADER = struct.Struct("<40xQ10xHHH")  # of a 64-bit file: e_shoff, then e_shentsize, e_shnum, e_shstrndx
_SECTION = struct.Struct("<IIQQQQII16x")
_ENTRY = struct.Struct("<QQ")


def needed(path: Path) -> tuple[str, ...]:
    """Return the names that the loader will look for, such as ``libnvinfer.so.10``; none where it is no ELF file.

    Little-endian 64-bit files, which is what Linux runs on here, are read; others give none.
    """
    try:
        with path.open("rb") as file:
            return tuple(_names(file)) if file.read(6) == b"\x7fELF\x02\x01" else ()
    except (OSError, struct.error, UnicodeDecodeError, IndexError):
        return ()


def _names(file: BinaryIO) -> Iterator[str]:
    start, size, number, _ = _read(file, 0, _HEADER)
    sections = [_read(file, start + size * index, _SECTION) for index in range(number)]
    for _, kind, _, _, offset, length, link, _ in sections:
        if kind == _DYNAMIC:
            names = sections[link]
            file.seek(names[4])
            text = file.read(names[5])
            for index in range(length // _ENTRY.size):
                tag, value = _read(file, offset + index * _ENTRY.size, _ENTRY)
                if tag == 1:
                    yield text[value : text.index(b"\0", value)].decode()


def _read(file: BinaryIO, place: int, layout: struct.Struct) -> tuple[int, ...]:
    file.seek(place)
    return layout.unpack(file.read(layout.size))
