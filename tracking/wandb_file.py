"""The files in which wandb keeps offline runs: read, and written with other records.

A .wandb file is a LevelDB log behind a header of its own: ``:W&B``, 0xBEE1 little-endian, version
0; blocks of 32 KiB; in them pieces ``<IHB`` crc, length, type (1 whole, 2 first, 3 middle, 4 last)
and data. crc is zlib's over the type's byte and the data. What a whole or a first to a last piece
hold is one `wandb_internal_pb2.Record`.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator

from tracking.files import DamagedError

BLOCK = 32 * 1024
_FILE = struct.Struct("<4sHB")
_PIECE = struct.Struct("<IHB")
_HEADER = _FILE.pack(b":W&B", 0xBEE1, 0)
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file up to where it ends; a last one that was cut off is left out.

    Raises:
        DamagedError: it is no such file, or a piece is not what was written.
    """
    if content[: _FILE.size] != _HEADER:
        raise DamagedError("is no file of wandb")
    parts, at = list[bytes](), _FILE.size
    while at + _PIECE.size <= len(content):
        if BLOCK - at % BLOCK < _PIECE.size:  # what is left of a block is not used
            at += BLOCK - at % BLOCK
            continue
        crc, length, kind = _PIECE.unpack_from(content, at)
        piece = content[at + _PIECE.size : at + _PIECE.size + length]
        if len(piece) < length:
            return
        if zlib.crc32(piece, zlib.crc32(bytes([kind]))) != crc:
            raise DamagedError(f"is damaged (its checksum differs at byte {at})")
        at += _PIECE.size + length
        parts = [piece] if kind in (_WHOLE, _FIRST) else [*parts, piece]
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)


def packed(found: Iterable[bytes]) -> bytes:
    """Return the content of a file with these records; inverse of `records`."""
    content = bytearray(_HEADER)
    for record in found:
        rest, is_first = record, True
        while is_first or rest:
            room = BLOCK - len(content) % BLOCK
            if room < _PIECE.size:
                content += bytes(room)
                continue
            piece, rest = rest[: room - _PIECE.size], rest[room - _PIECE.size :]
            kind = (_FIRST if rest else _WHOLE) if is_first else (_MIDDLE if rest else _LAST)
            crc = zlib.crc32(piece, zlib.crc32(bytes([kind])))
            content += _PIECE.pack(crc, len(piece), kind) + piece
            is_first = False
    return bytes(content)
