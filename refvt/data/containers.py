"""Checks whether a video file has all the bytes it declares.

A video decoder reads a file that was truncated between two frames without an error: it finds fewer frames, and the
centre clip of these is another clip. Four families of formats declare their length, so truncation can be detected
without decoding:

- MP4 and MOV (ISO/IEC 14496-12): a sequence of boxes, each with its size,
- AVI (RIFF): a sequence of chunks, each with its size,
- Matroska and WebM (RFC 8794, RFC 9559): one segment with its size,
- GIF: a trailer byte.

MPEG transport streams and raw streams declare no length, so truncation between two frames cannot be detected.
"""

import os
from pathlib import Path
from typing import BinaryIO

_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"sidx"}
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def missing_bytes(path: Path) -> str | None:
    """Return a clause for an error message if the file is truncated, else None.

    Only a few bytes are read. Raises OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[4:8] in _BOXES:
            return _boxes(file, size)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return _chunks(file, size)
        if head[:4] == _EBML:
            return _segment(file, size)
        if head[:6] in (b"GIF87a", b"GIF89a"):
            file.seek(max(0, size - 64))
            # some writers pad the end with zeros
            return None if file.read().rstrip(b"\0").endswith(b";") else "the trailer of the GIF is missing"
    return None


def _boxes(file: BinaryIO, size: int) -> str | None:
    """Check the boxes of an MP4 or MOV file of ``size`` bytes."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:  # the size did not fit in 32 bits and follows in 64
            length = int.from_bytes(head[8:16], "big")
        # a length of 0 means "to the end of the file"; anything else here is an unknown box
        if length < 8 or kind not in _BOXES:
            return None
        if start + length > size:
            return _declared(f"the {kind.decode()} box", start + length, size)
        start += length
    return None


def _chunks(file: BinaryIO, size: int) -> str | None:
    """Check the chunks of an AVI file."""
    start = 0
    while start + 8 <= size:
        file.seek(start)
        head = file.read(8)
        length = int.from_bytes(head[4:8], "little")
        # a recorder that was stopped abruptly has written no length
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return None
        if start + 8 + length > size:
            return _declared("the RIFF chunk", start + 8 + length, size)
        start += 8 + length + length % 2
    return None


def _segment(file: BinaryIO, size: int) -> str | None:
    """Check the segment of a Matroska or WebM file."""
    file.seek(len(_EBML))
    header_length = _ebml_size(file)
    if header_length is None:
        return None
    file.seek(header_length, os.SEEK_CUR)
    if file.read(len(_SEGMENT)) != _SEGMENT:
        return None
    length = _ebml_size(file)
    if length is not None and file.tell() + length > size:
        return _declared("the Matroska segment", file.tell() + length, size)
    return None


def _ebml_size(file: BinaryIO) -> int | None:
    """Read an EBML size; None if unknown (all ones). The first byte's leading zeros count the bytes that follow."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + file.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value


def _declared(what: str, end: int, size: int) -> str:
    return f"{what} ends at byte {end}, the file at byte {size}"
