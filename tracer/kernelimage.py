"""The ELF inside a Linux bzImage (the kernel's Documentation/x86/boot.rst, protocol 2.08 and later)."""

from __future__ import annotations

import lzma
import struct
import zlib

import lz4.block
import zstandard

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
#: A block of the legacy format holds at most this much, uncompressed.
_LZ4_BLOCK = 8 << 20
_MOST = 1 << 30


def unpack(image: bytes) -> bytes:
    """The kernel proper from a bzImage; an ELF file comes back as it is. ``ValueError`` where it is neither."""
    if image[:4] == b"\x7fELF":
        return image
    if image[0x202:0x206] != b"HdrS":
        raise ValueError("neither a bzImage nor an ELF file")
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    try:
        return _decompress(payload)
    except (zlib.error, lzma.LZMAError, lz4.block.LZ4BlockError, zstandard.ZstdError, struct.error) as error:
        raise ValueError(f"the kernel in the bzImage cannot be unpacked: {error}") from error


def version(image: bytes) -> str | None:
    """The version that a bzImage says it has, such as `6.1.0-56-cloud-amd64`; ``None`` where it is none."""
    if image[0x202:0x206] != b"HdrS":
        return None
    (offset,) = struct.unpack_from("<H", image, 0x20E)
    words = image[offset + 0x200 : offset + 0x200 + 256].split(b"\0", 1)[0].decode("ascii", "replace").split()
    return words[0] if offset and words else None


def _decompress(payload: bytes) -> bytes:
    if payload[:2] == b"\x1f\x8b":
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(payload, _MOST)
    if payload[:6] == b"\xfd7zXZ\x00":
        return lzma.LZMADecompressor().decompress(payload, _MOST)
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    if payload[:4] == _LZ4_LEGACY:
        return _lz4_legacy(payload)
    raise ValueError("the kernel in the bzImage is compressed in an unknown way")


def _lz4_legacy(payload: bytes) -> bytes:
    """Blocks of a 4-byte length and data each; the payload's last four bytes are the size that comes out."""
    (size,) = struct.unpack("<I", payload[-4:])
    out, at, end = bytearray(), len(_LZ4_LEGACY), len(payload) - 4
    while at < end and len(out) < min(size, _MOST):
        (length,) = struct.unpack_from("<I", payload, at)
        out += lz4.block.decompress(payload[at + 4 : at + 4 + length], uncompressed_size=_LZ4_BLOCK)
        at += 4 + length
    return bytes(out)
