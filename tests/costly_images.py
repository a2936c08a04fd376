"""Pictures of few bytes or plain build that ask a decoder for much time or memory, generated."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from hostile_images import (
    RED,
    exif,
    jpeg_with_size,
    noisy,
    plain,
    png,
    png_chunk,
    riff_webp,
    rle_bmp,
    save,
    tiff,
    tiff_grey,
)  # fmt: skip

MANY = 1_000_000


def jpeg_segments(segments: list[tuple[int, bytes]], picture: bytes | None = None) -> bytes:
    made = b"".join(struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in segments)
    return b"\xff\xd8" + made + (picture or save(plain(), "JPEG"))[2:]


def shared_tags(count: int, size: int, order: str = "<") -> bytes:
    """EXIF of `count` tags that all have the same `size` bytes for a value."""
    tags = b"".join(struct.pack(order + "HHII", 40_000 + i % 25_000, 7, size, 8) for i in range(count))
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + size)
    return header + bytes(size) + struct.pack(order + "H", count) + tags + bytes(4)


def staged_profile(stages: int) -> bytes:
    """An ICC profile whose A2B table, as floats, is a chain of so many matrices."""
    matrix = b"matf" + bytes(4) + struct.pack(">HH", 3, 3)
    matrix += struct.pack(">12f", 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
    start = 16 + 8 * stages
    positions = struct.pack(">II", start, len(matrix)) * stages
    element = b"mpet" + bytes(4) + struct.pack(">HHI", 3, 3, stages) + positions + matrix
    return profile([(b"D2B0", element), (b"A2B0", _table(3)), (b"wtpt", b"XYZ " + bytes(4) + bytes(12))])


def _table(channels: int) -> bytes:
    """An `mft1` of two grid points."""
    head = b"mft1" + bytes(4) + bytes([channels, 3, 2, 0])
    head += struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    return head + bytes(range(256)) * channels + bytes(3 * 2**channels) + bytes(range(256)) * 3


def profile(tags: list[tuple[bytes, bytes]], space: bytes = b"RGB ") -> bytes:
    offset, table, bodies = 132 + 12 * len(tags), b"", b""
    for name, body in tags:
        table += name + struct.pack(">II", offset + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    head = struct.pack(">I4sI4s4s4s", offset + len(bodies), b"lcms", 0x04300000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


def tiff_of_parts(parts: int, *, tiles: bool, compression: int = 1, overlap: bool = False) -> bytes:
    """`parts` strips of a row each, or tiles of 16×16, side by side or each over all of the data."""
    width, height = (16 * parts, 16) if tiles else (1, parts)
    if overlap:
        width, height = 64, parts
    body = bytes(4 * MANY) if overlap else bytes(256)
    at, length = (8, len(body)) if overlap else (8, 16)
    start = 8 + len(body)
    lists = struct.pack(f"<{parts}I", *[at] * parts) + struct.pack(f"<{parts}I", *[length] * parts)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1),
        (277, 3, 1, 1),
    ]  # fmt: skip
    where, how_long = (324, 325) if tiles else (273, 279)
    tags += [(where, 4, parts, start), (how_long, 4, parts, start + 4 * parts)]
    tags += [(322, 3, 1, 16), (323, 3, 1, 16)] if tiles else [(278, 4, 1, 1)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", start + len(lists)) + body + lists + directory + bytes(4)


def gif_blocks(extension: bytes, blocks: int, size: int = 1) -> bytes:
    data = save(plain(), "GIF")
    at = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:at] + extension + (bytes([size]) + b"x" * size) * blocks + b"\0" + data[at:]


def gif_of(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    return b"GIF89a" + screen + struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\0;"


def webp_of(width: int, height: int) -> bytes:
    """Lossless, of one colour: five codes of one symbol each and no data."""
    bits, place = 0, 0
    fields = [(width - 1, 14), (height - 1, 14), (0, 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    fields += [(1, 1), (0, 1), (0, 1), (0, 1)] * 5
    for value, count in fields:
        bits |= value << place
        place += count
    return riff_webp(b"VP8L", b"\x2f" + bits.to_bytes((place + 7) // 8 + 1, "little"))


def avif_stream(side: int) -> bytes:
    """An AVIF of 128×128 whose stream states frames of `side`×`side`, up to 65,536."""
    data = save(noisy((128, 128)), "AVIF", speed=10)
    at = data.index(b"mdat") + 4
    start = data.index(b"\x0a", at)  # a sequence header with its size
    end = start + 2 + data[start + 1]
    bits = f"{int.from_bytes(data[start + 2 : end], 'big'):0{8 * (end - start - 2)}b}"
    assert bits[4] == "1" and bits[10:18] == "01100110", "libaom writes a reduced header of 7 bits a side"
    bits = bits[:10] + "1" * 8 + 2 * f"{side - 1:016b}" + bits[18 + 14 :]
    body = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    stream = data[at:start] + bytes([0x0A, len(body)]) + body + data[end:]
    return _with_item(data, at, stream)


def _with_item(data: bytes, at: int, stream: bytes) -> bytes:
    """An AVIF of one item with another one in its place, from `at` to the end."""
    head = bytearray(data[:at])
    where = head.index(struct.pack(">I", len(data) - at))
    head[where : where + 4] = struct.pack(">I", len(stream))
    head[at - 8 : at - 4] = struct.pack(">I", len(stream) + 8)
    return bytes(head) + stream


def avif_frames(count: int) -> bytes:
    data = save(noisy((64, 64)), "AVIF", speed=10)
    at = data.index(b"mdat") + 4
    return _with_item(data, at, data[at:] * count)


def costly() -> Iterator[tuple[str, bytes]]:
    yield "jpeg: joined exif", jpeg_segments([(0xE1, b"Exif\0\0" + bytes(65_000))] * 240)
    yield "jpeg: exif that shares data", jpeg_segments([(0xE1, b"Exif\0\0" + shared_tags(2_000, 30_000))])
    yield "jpeg: a million comments", jpeg_segments([(0xFE, b"")] * MANY)
    yield (
        "jpeg: profile of stages",
        jpeg_segments([(0xE2, b"ICC_PROFILE\0\1\1" + staged_profile(1_000)[:65_000])]),
    )
    big = staged_profile(200_000)
    parts = [big[i : i + 65_000] for i in range(0, len(big), 65_000)]
    yield (
        "jpeg: profile of very many stages",
        jpeg_segments(
            [(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, len(parts)]) + part) for i, part in enumerate(parts)]
        ),
    )
    yield "jpeg: 65500 x 700", jpeg_with_size(65_500, 700)

    rows = zlib.compress((b"\0" + bytes(RED) * 64) * 48)
    small = png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100_000)))
    yield "png: 10,000 profiles", png(64, 48, rows, before=small * 10_000)
    yield (
        "png: profile of stages",
        png(64, 48, rows, before=png_chunk(b"iCCP", b"k\0\0" + zlib.compress(staged_profile(100_000)))),
    )
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(MANY)))
    yield "png: 10,000 texts", png(64, 48, rows, before=text * 10_000)
    yield "png: a million empty chunks", png(64, 48, rows, before=png_chunk(b"IDAT", b"") * MANY)
    yield (
        "png: exif that shares data",
        png(64, 48, rows, before=png_chunk(b"eXIf", shared_tags(9_000, 10**6))),
    )
    yield "webp: 64 million in 46 bytes", webp_of(16_000, 4_000)
    yield "webp: 15 million in 46 bytes", webp_of(3_873, 3_873)
    yield (
        "webp: a million chunks",
        riff_webp(b"VP8X", bytes(4) + b"\x3f\0\0\x2f\0\0") + (b"ABCD" + bytes(4)) * MANY,
    )
    yield "gif: 64 million in 60 bytes", gif_of(65_535, 976)
    yield "gif: 49 million in 60 bytes", gif_of(7_000, 7_000)
    yield "gif: comments", gif_blocks(b"\x21\xfe", 2 * MANY)
    yield "gif: comments one by one", gif_blocks(b"\x21\xfe\x01x\0" * 2 * MANY + b"\x21\xfe", 1)
    yield "bmp: run lengths, 64 million", rle_bmp(64_000_000, 1, b"\0\1")
    yield "bmp: 64 million", rle_bmp(8_000, 8_000, b"", compression=0)

    for tiles in (False, True):
        what = "tiles" if tiles else "strips"
        yield f"tiff: a million {what}", tiff_of_parts(MANY, tiles=tiles)
        yield f"tiff: a million {what}, deflate", tiff_of_parts(MANY, tiles=tiles, compression=8)
    yield "tiff: 4,999 strips", tiff_of_parts(4_999, tiles=False)
    yield "tiff: strips that share bytes", tiff_of_parts(20_000, tiles=False, compression=8, overlap=True)
    tags = tiff_grey(64, 48, offset=8) + [(40_000 + i, 7, MANY, 8) for i in range(4_000)]
    yield "tiff: tags that share data", tiff(tags, tail=bytes(MANY))
    yield "avif: a stream of 65536 x 65536", avif_stream(65_536)
    yield "avif: a stream of 8000 x 8000", avif_stream(8_000)
    yield "avif: 200 frames", avif_frames(200)
    data = save(plain(), "WEBP", exif=exif(1))
    at = data.index(b"EXIF")
    yield "webp: exif that shares data", data[:at] + riff_webp(b"EXIF", shared_tags(9_000, MANY))[12:]


def large() -> Iterator[tuple[str, bytes]]:
    """What is decoded although it costs much: as large as pictures of shops are."""
    flat = save(plain((6000, 8000)), "JPEG", progressive=True, subsampling=0)
    scan = flat[flat.rindex(b"\xff\xda") : -2]
    yield "jpeg: 48 million pixels, 19 scans", flat[:-2] + scan * 9 + b"\xff\xd9"
    yield "png: 49 million pixels", png(7000, 7000, zlib.compress(bytes(7001 * 7000), 1), colour=0)
    yield "png: 49 million, palette", png(
        7000, 7000, zlib.compress(bytes(7001 * 7000), 1), colour=3,
        before=png_chunk(b"PLTE", bytes(6)) + png_chunk(b"tRNS", b"\x80"),
    )  # fmt: skip
    wide = zlib.compress(bytes(4 * 5000 + 1) * 5000, 1)
    yield "png: 25 million, alpha", png(5000, 5000, wide, colour=6)
    yield (
        "png: 36 million of 16 bits",
        png(6000, 6000, zlib.compress(bytes(12_001) * 6000, 1), colour=0, depth=16),
    )
    floats = Image.fromarray(np.zeros((4000, 4000), np.float32))
    yield "tiff: 16 million floats", save(floats, "TIFF", compression="tiff_deflate")


# ------------------------------------------------------------------------------------ random structures

_BODY = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"Exif\0\0" + shared_tags(5, 20), b"ICC_PROFILE\0\1\1" + staged_profile(3), bytes(300)]),
)
_NUMBER = st.one_of(
    st.integers(0, 9), st.sampled_from([64, 255, 65_535, 2**31, 2**32 - 1]), st.integers(0, 4_000)
)


def structures(fmt: str) -> st.SearchStrategy[bytes]:
    """Files of a format whose parts are of random kinds, order and content, around a true picture."""
    picture = save(plain(), fmt)
    match fmt:
        case "JPEG":
            segment = st.tuples(st.sampled_from([*range(0xC0, 0xD0), *range(0xDA, 0xF0), 0xFE]), _BODY)
            return st.lists(segment, max_size=8).map(lambda parts: jpeg_segments(parts, picture))
        case "PNG":
            kinds = [b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"acTL", b"fdAT", b"abCD"]
            chunk = st.builds(png_chunk, st.sampled_from(kinds), _BODY)
            rows = zlib.compress((b"\0" + bytes(RED) * 64) * 48)
            return st.lists(chunk, max_size=8).map(lambda parts: png(64, 48, rows, before=b"".join(parts)))
        case "WEBP":
            kinds = [b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"ICCP", b"XMP ", b"VP8 ", b"VP8L"]
            chunk = st.builds(lambda k, b: riff_webp(k, b)[12:], st.sampled_from(kinds), _BODY)
            head = st.sampled_from([b"", riff_webp(b"VP8X", b"\x3e\0\0\0\x3f\0\0\x2f\0\0")[12:]])
            body = st.tuples(head, st.lists(chunk, max_size=6).map(b"".join), st.just(picture[12:]))
            return body.map(lambda parts: b"RIFF" + struct.pack("<I", 9_999) + b"WEBP" + b"".join(parts))
        case "GIF":
            at = 13 + 3 * 2 ** ((picture[10] & 7) + 1)
            part = st.one_of(
                st.builds(
                    lambda k, b: bytes([0x21, k, len(b)]) + b + b"\0",
                    st.integers(0, 255),
                    st.binary(max_size=9),
                ),
                st.tuples(*[st.integers(0, 300)] * 4).map(
                    lambda box: struct.pack("<BHHHHB", 0x2C, *box, 0) + b"\x02\x02\x4c\x01\0"
                ),
            )
            return st.lists(part, max_size=5).map(lambda parts: picture[:at] + b"".join(parts) + picture[at:])
        case "BMP":
            fields = st.fixed_dictionaries(
                {}, optional={i: _NUMBER for i in (10, 14, 18, 22, 28, 30, 34, 46)}
            )
            return fields.map(
                lambda found: _patched(picture, {at: struct.pack("<I", n) for at, n in found.items()})
            )
        case "TIFF":
            tag = st.tuples(
                st.sampled_from(
                    [*(t[0] for t in tiff_grey(1, 1)), 266, 274, 284, 317, 320, 322, 323, 324, 325, 338]
                ),
                st.integers(0, 18),
                _NUMBER,
                _NUMBER,
            )
            tags = st.lists(tag, max_size=6).map(
                lambda more: list({t[0]: t for t in tiff_grey(64, 48) + more}.values())
            )
            return tags.map(lambda found: tiff(found, tail=bytes(4_000)))
        case _:
            edits = st.dictionaries(
                st.integers(8, picture.index(b"mdat") + 60), st.binary(min_size=1, max_size=4)
            )
            return edits.map(lambda found: _patched(picture, found))


def _patched(data: bytes, edits: dict[int, bytes]) -> bytes:
    made = bytearray(data)
    for at, part in edits.items():
        made[at : at + len(part)] = part
    return bytes(made)
