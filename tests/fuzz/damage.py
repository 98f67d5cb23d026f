"""Ways to spoil a file's bytes: blindly, or at the fields of its format, with checksums made right again."""

import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np

INTERESTING = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    1000,
    32767,
    32768,
    65535,
    65536,
    178956970,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The same file, spoilt in one to three ways."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        known = [way for magic, way in FORMATS.items() if data.startswith(magic)]
        way = known[0] if known and rng.random() < 0.5 else BLIND[rng.integers(len(BLIND))]
        data = way(data, rng) if data else b""
    return data


# -- Blindly ----------------------------------------------------------------------------------------------------------


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    """Without its end."""
    return data[: rng.integers(len(data))]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """Up to twenty bits are others."""
    spoilt = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 21)):
        spoilt[place] ^= 1 << rng.integers(8)
    return bytes(spoilt)


def replaced(data: bytes, rng: np.random.Generator) -> bytes:
    """A run of bytes is zero, random, missing, or there twice."""
    first = int(rng.integers(len(data)))
    last = min(len(data), first + int(rng.integers(1, 65)))
    middle = (bytes(last - first), rng.bytes(last - first), b"", data[first:last] * 2)[rng.integers(4)]
    return data[:first] + middle + data[last:]


def headed(data: bytes, rng: np.random.Generator) -> bytes:
    """A byte of the first hundred is another: that is where most formats keep their sizes."""
    place = int(rng.integers(min(100, len(data))))
    return data[:place] + rng.bytes(1) + data[place + 1 :]


def extended(data: bytes, rng: np.random.Generator) -> bytes:
    """Followed by itself, by zeros or by noise."""
    return data + (data, bytes(1000), rng.bytes(1000))[rng.integers(3)]


BLIND: list[Callable[[bytes, np.random.Generator], bytes]] = [truncated, flipped, replaced, headed, extended]

# -- At the fields of a format ----------------------------------------------------------------------------------------


def _put(data: bytes, rng: np.random.Generator, fields: list[tuple[int, int, str]]) -> bytes:
    """An interesting number in one of the fields (place, bytes, byte order)."""
    if not fields:
        return flipped(data, rng)
    place, size, order = fields[rng.integers(len(fields))]
    number = int(rng.choice(INTERESTING)) if rng.random() < 0.8 else int(rng.integers(2**32))
    code = order + {1: "B", 2: "H", 4: "I"}[size]
    return data[:place] + struct.pack(code, number % 256**size) + data[place + size :]


def png(data: bytes, rng: np.random.Generator) -> bytes:
    """A chunk is changed, missing, doubled or moved; all checksums are right."""
    chunks = list(png_chunks(data))
    place = int(rng.choice([0, rng.integers(len(chunks))])) if chunks else 0
    if not chunks or rng.random() < 0.2:
        return flipped(data, rng)
    kind, content = chunks[place]
    action = rng.integers(5)
    if action < 3:
        spoilt = BLIND[rng.integers(len(BLIND))](content, rng) if content else rng.bytes(4)
        if kind == b"IHDR" and len(content) == 13:
            spoilt = _put(content, rng, [(0, 4, ">"), (4, 4, ">"), *((byte, 1, ">") for byte in range(8, 13))])
        chunks[place] = kind, spoilt
    elif action == 3:
        del chunks[place]
    else:
        chunks.insert(int(rng.integers(len(chunks) + 1)), chunks[place])
    return data[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content) of every whole chunk."""
    place = 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        place += 12 + size


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk as it lies in a file."""
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def jpeg(data: bytes, rng: np.random.Generator) -> bytes:
    """A field of a segment before the picture's data is changed, or a segment is missing or doubled."""
    fields, segments, place = [], [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        size = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        segments.append((place, place + size))
        fields.append((place + 2, 2, ">"))
        fields += [(place + 4 + byte, 1, ">") for byte in range(min(20, size - 4))]
        fields += [(place + 5, 2, ">"), (place + 7, 2, ">")] * (data[place + 1] in (0xC0, 0xC1, 0xC2))
        place += size
    if segments and rng.random() < 0.3:
        first, last = segments[rng.integers(len(segments))]
        return data[:last] + data[first:] if rng.random() < 0.5 else data[:first] + data[last:]
    return _put(data, rng, [field for field in fields if field[0] + field[1] <= len(data)])


def tiff(data: bytes, rng: np.random.Generator) -> bytes:
    """A tag, type, count or value of a directory, or the place of the next one, is changed."""
    order = "<" if data[:2] == b"II" else ">"
    first = int.from_bytes(data[4:8], "little" if order == "<" else "big")
    if first + 2 > len(data):
        return flipped(data, rng)
    (count,) = struct.unpack_from(order + "H", data, first)
    fields = [(first + 2 + 12 * min(count, 100), 4, order), (4, 4, order)]
    for entry in range(first + 2, first + 2 + 12 * min(count, 100), 12):
        fields += [
            (entry, 2, order),
            (entry + 2, 2, order),
            (entry + 4, 4, order),
            (entry + 8, 4, order),
            (entry + 8, 2, order),
        ]
    return _put(data, rng, [field for field in fields if field[0] + field[1] <= len(data)])


def riff(data: bytes, rng: np.random.Generator) -> bytes:
    """A size, a flag or a dimension of a WebP's chunks is changed."""
    fields, place = [(4, 4, "<")], 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        fields += [(place + 4, 4, "<"), *((place + 8 + byte, 1, "<") for byte in range(min(12, size)))]
        place += 8 + size + size % 2
    return _put(data, rng, [field for field in fields if field[0] + field[1] <= len(data)])


def header(data: bytes, rng: np.random.Generator) -> bytes:
    """A number of two or four bytes in the first 60 is changed: BMP, GIF."""
    place, size = int(rng.integers(2, 60)), int(rng.choice([2, 4]))
    return _put(data, rng, [(place, size, "<")] if place + size <= len(data) else [])


# How files begin -> what spoils them at their fields.
FORMATS = {
    b"\x89PNG": png, b"\xff\xd8": jpeg, b"II*\0": tiff, b"MM\0*": tiff, b"RIFF": riff, b"GIF8": header, b"BM": header,
}  # fmt: skip
