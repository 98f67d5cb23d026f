"""Small ICC profiles (version 2.4) written byte by byte: grey with a gamma, and CMYK inks that mix linearly in CIE L*a*b*."""

import itertools
import struct

INKS = {
    "C": (-45, -37, -50),
    "M": (-52, 74, -3),
    "Y": (-11, -5, 93),
    "K": (-84, 0, 0),
}  # what each adds to white's L*, a*, b*


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz(0.9642, 1.0, 0.8249), **tags}
    start = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I", start + len(data)) + bytes(4) + struct.pack(">I", 0x02400000) + kind + space + connection
    header += struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + _xyz(0.9642, 1.0, 0.8249)[8:]
    return header.ljust(128, b"\0") + table + data


def _xyz(*numbers: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(number * 65536) for number in numbers))


def grey_profile(gamma: float) -> bytes:
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": curve})


def cmyk_profile() -> bytes:
    ramp = bytes(range(256))
    grid = b""
    for inks in itertools.product((0, 1), repeat=4):
        lightness, a, b = (sum(ink * add[k] for ink, add in zip(inks, INKS.values(), strict=True)) for k in range(3))
        lab = (
            round(max(0, 100 + lightness) * 2.55),
            round(max(-128, min(127, a)) + 128),
            round(max(-128, min(127, b)) + 128),
        )
        grid += bytes(lab)
    matrix = struct.pack(">9i", *(65536 if k % 4 == 0 else 0 for k in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + grid + ramp * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})
