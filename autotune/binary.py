"""What a compiled binary tells of itself: the code in it, and the registers and spills that code takes."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import triton

_NO_BITS = 8  # the type of a section that takes memory and no room in the file


def machine_code(elf: bytes) -> bytes:
    """The binary (a 64-bit ELF file: cubin or hsaco) without what names source files and lines.

    :raises struct.error: if ``elf`` is cut short.
    """
    return b"".join(name + b"\0" + content for name, content in _sections(elf) if b"debug" not in name)


def _sections(elf: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, content) of each section, in file order; layout from the ELF-64 specification."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_bytes, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + index * entry_bytes) for index in range(count)]
    names = headers[names_index][4]
    for name, kind, _flags, _address, offset, size in headers:
        start = names + name
        yield elf[start : elf.index(b"\0", start)], b"" if kind == _NO_BITS else elf[offset : offset + size]


def nvidia_registers(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers a thread, and bytes of local memory a thread, which is where spills go; None without the tool.

    :raises RuntimeError: if cuobjdump does not tell them.
    """
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():  # not every build of Triton brings it
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    return _number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text)


def amd_registers(assembly: str) -> tuple[int, int]:
    """Vector registers a lane, and bytes of scratch memory a lane, which is where spills go.

    :raises RuntimeError: if the assembly, AMDGCN text, does not tell them.
    """
    return _number(r"\.vgpr_count:\s+(\d+)", assembly), _number(r"\.private_segment_fixed_size:\s+(\d+)", assembly)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern} in what the compiler says of its code: {text[:300]}")
    return int(found.group(1))
