"""Entropy coding of small integers: digits packed into bytes, and the adaptive range coder of LZMA, which Python brings.

LZMA spends a little on every byte that is no repetition. Several digits in a byte share that, so quantised weights come within
3 % of their entropy from 10,000 of them on (benchmarks/bytes.py says which coders were measured).
"""

import lzma
import struct

import numpy as np

MOST_PACKED = 2000
"""Symbols for each byte of a stream that are believed: what noise or weights never reach, and LZMA could exceed."""
TRIED = 2**15
"""Symbols by which one of several ways is chosen."""
_DICTIONARY = 2**20
_CONTEXTS = (2, 4)  # high bits of the last byte by which the next one is predicted, beside none
_FRAME = struct.Struct("<B")


def encode(symbols: np.ndarray, base: int) -> bytes:
    """Of several codings that which is shortest for the first symbols: uint8 (n,) `symbols` below `base`, 2 to 256 -> bytes."""
    ways = [(digits, 0) for digits in range(1, _most_digits(base) + 1)] + [(1, bits) for bits in _CONTEXTS]
    return _encoded(symbols, base, *min(ways, key=lambda way: len(_encoded(symbols[:TRIED], base, *way))))


def decode(content: bytes, count: int, base: int) -> np.ndarray:
    """Inverse of `encode`: bytes -> uint8 (count,).

    Raises:
        ValueError: if these are no such bytes, before there is memory for more than they can hold.
    """
    if not 0 <= count <= MOST_PACKED * len(content) or not content:
        raise ValueError(f"{count} symbols in {len(content)} bytes")
    (way,) = _FRAME.unpack_from(content)
    digits, bits = way & 15, way >> 4
    if not 1 <= digits <= _most_digits(base) or bits not in (0, *_CONTEXTS):
        raise ValueError(f"coding {way} is unknown")
    size = -(-count // digits)
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(bits))
    try:
        found = decoder.decompress(content[_FRAME.size :], max_length=size + 1)
    except lzma.LZMAError as error:
        raise ValueError(f"a stream cannot be decoded: {error}") from None
    if len(found) != size or not decoder.eof or decoder.unused_data:
        raise ValueError(f"{len(found)} bytes came of a stream of {size}")
    packed = np.frombuffer(found, np.uint8)
    if digits == 1:
        symbols = packed >> _shift(base)
    else:
        powers = base ** np.arange(digits - 1, -1, -1)
        symbols = (packed[:, None] // powers % base).astype(np.uint8).reshape(-1)[:count]
    if count and int(symbols.max()) >= base:
        raise ValueError(f"symbol {int(symbols.max())} of {base}")
    return symbols


def _encoded(symbols: np.ndarray, base: int, digits: int, bits: int) -> bytes:
    if digits == 1:
        packed = symbols << _shift(base)
    else:
        padded = np.pad(symbols, (0, -len(symbols) % digits)).reshape(-1, digits)
        packed = (padded * base ** np.arange(digits - 1, -1, -1)).sum(1).astype(np.uint8)
    content = lzma.compress(packed.tobytes(), lzma.FORMAT_RAW, filters=_filters(bits))
    return _FRAME.pack(digits | bits << 4) + content


def _most_digits(base: int) -> int:
    """Digits that a byte holds."""
    digits = 1
    while base ** (digits + 1) <= 256:
        digits += 1
    return digits


def _shift(base: int) -> int:
    """Single symbols stand in the high bits, which are those that contexts see."""
    return 8 - (base - 1).bit_length()


def _filters(bits: int) -> list[dict]:
    return [{"id": lzma.FILTER_LZMA1, "preset": 9, "lc": bits, "lp": 0, "pb": 0, "dict_size": _DICTIONARY}]
