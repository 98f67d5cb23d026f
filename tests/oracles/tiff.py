"""A TIFF written number by number, as its specification (TIFF 6.0) has it: one strip, or one for each plane; uncompressed."""

import struct
from pathlib import Path

import numpy as np

PHOTOMETRIC = {"white is zero": 0, "black is zero": 1, "RGB": 2, "palette": 3, "CMYK": 5, "YCbCr": 6, "LAB": 8}
FORMATS = {"unsigned": 1, "signed": 2, "float": 3}


def packed(rows: np.ndarray, bits: int, order: str) -> bytes:
    """Numbers (H, N) of so many bits: whole bytes in the file's order, or packed bits, each row beginning a new byte."""
    if bits in (8, 16, 32):
        return rows.astype(f"{order}{rows.dtype.kind}{bits // 8}").tobytes()
    digits = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(digits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def write_tiff(
    path: Path,
    values: np.ndarray,
    bits: int,
    photometric: str,
    order: str = "<",
    apart: bool = False,
    extra: int | None = None,
    numbers: str = "unsigned",
    palette: np.ndarray | None = None,
) -> None:
    """values: (H, W, C). order: "<" little or ">" big endian. extra: what the channels beyond the colours are (0, 1, 2)."""
    height, width, channels = values.shape
    planes = [values[..., k] for k in range(channels)] if apart else [values.reshape(height, -1)]
    strips = [packed(plane, bits, order) for plane in planes]
    short, long = "H", "I"
    tags = {
        256: (long, [width]),
        257: (long, [height]),
        258: (short, [bits] * channels),
        259: (short, [1]),
        262: (short, [PHOTOMETRIC[photometric]]),
        273: (long, [0] * len(strips)),
        277: (short, [channels]),
        278: (long, [height]),
        279: (long, [len(strip) for strip in strips]),
        284: (short, [2 if apart else 1]),
        339: (short, [FORMATS[numbers]] * channels),
    }
    if extra is not None:
        tags[338] = (short, [extra])
    if palette is not None:
        tags[320] = (short, (palette.T.ravel() * 257).tolist())
    start = 8 + 2 + 12 * len(tags) + 4  # of what does not fit into an entry
    sizes = [len(numbers) * struct.calcsize(kind) for kind, numbers in tags.values()]
    data = start + sum(size for size in sizes if size > 4)
    tags[273] = (long, [data + sum(map(len, strips[:k])) for k in range(len(strips))])
    entries, beyond = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        encoded = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        entries += struct.pack(f"{order}HHI", tag, {short: 3, long: 4}[kind], len(numbers))
        entries += encoded.ljust(4, b"\0") if len(encoded) <= 4 else struct.pack(f"{order}I", start + len(beyond))
        beyond += encoded if len(encoded) > 4 else b""
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + beyond + b"".join(strips))
