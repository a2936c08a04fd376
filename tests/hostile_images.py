"""Hostile and odd image files, generated: what feeds of strangers hold, by intent or by accident.

`refused()` gives (name, bytes, codes that are right answers); `odd()` gives (name, bytes, colour), files
that look strange but are pictures and must decode to that colour at their centre; `unnoticed()` gives files
whose rows are missing although the coded data ends properly, which Pillow fills up and we cannot tell.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

RED, GREY, WHITE, BLACK = (200, 30, 40), (128, 128, 128), (255, 255, 255), (0, 0, 0)


def plain(size: tuple[int, int] = (64, 48), colour: tuple[int, ...] = RED, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def noisy(size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture that does not compress to nothing, so that half of its file is half of its pixels."""
    noise = np.random.default_rng(7).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def save(image: Image.Image, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, idat: bytes, *, depth: int = 8, colour: int = 2, before: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", idat) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def riff_webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body + b"\x00" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tiff(tags: list[tuple[int, int, int, int]], *, next_ifd: int = 0, tail: bytes = b"") -> bytes:
    """Little-endian TIFF of one directory; each tag is (number, type, count, value)."""
    directory = struct.pack("<H", len(tags))
    for number, kind, count, value in sorted(tags):
        directory += struct.pack("<HHII", number, kind, count, value)
    return b"II*\x00" + struct.pack("<I", 8) + directory + struct.pack("<I", next_ifd) + tail


def tiff_grey(width: int, height: int, **more: int) -> list[tuple[int, int, int, int]]:
    strip = more.get("offset", 200)
    return [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, more.get("compression", 1)),
        (262, 3, 1, 1), (273, 4, 1, strip), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, width * height),
    ]  # fmt: skip


def jpeg_with_size(width: int, height: int) -> bytes:
    data = bytearray(save(plain(), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_with(offset: int, fmt: str, value: int) -> bytes:
    data = bytearray(save(plain(), "BMP"))
    struct.pack_into(fmt, data, offset, value)
    return bytes(data)


def gif_with_screen(width: int, height: int, frame: tuple[int, int, int, int] | None = None) -> bytes:
    data = bytearray(save(plain(), "GIF"))
    struct.pack_into("<HH", data, 6, width, height)
    if frame:
        struct.pack_into("<HHHH", data, data.index(b",") + 1, *frame)
    return bytes(data)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def swapped_profile() -> bytes:
    """An ICC profile whose red and blue primaries are exchanged: applying it is plain to see."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(struct.unpack_from(">I", profile, 128)[0]):
        entry = 132 + 12 * i
        name = bytes(profile[entry : entry + 4])
        if name in (b"rXYZ", b"bXYZ"):
            profile[entry : entry + 4] = b"bXYZ" if name == b"rXYZ" else b"rXYZ"
    return bytes(profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")))


def refused() -> Iterator[tuple[str, bytes, set[str]]]:
    unknown, bad, big = {"unsupported_format"}, {"corrupt", "truncated"}, {"too_many_pixels"}
    noise = {fmt: save(noisy(), fmt) for fmt in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")}

    yield "nothing", b"", {"empty"}
    yield "one byte", b"\xff", unknown
    yield "zeros", bytes(1000), unknown
    yield "a web page", b"<!DOCTYPE html><html><title>404 Not Found</title></html>", unknown
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", unknown
    yield "svg behind a BOM", b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", unknown
    yield "xml entities", b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>', unknown
    yield "pdf", b"%PDF-1.7\n%...", unknown
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", unknown
    yield "avif: nothing but its brand", b"\x00\x00\x00\x20ftypavif" + bytes(40), bad
    yield "heic", b"\x00\x00\x00\x20ftypheic" + bytes(40), unknown
    yield "mp4", b"\x00\x00\x00\x20ftypisom" + bytes(40), unknown
    for fmt in ("PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000"):
        yield fmt.lower(), save(plain(), fmt), unknown
    yield "riff that is not webp", b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(30), unknown

    for fmt, data in noise.items():
        yield f"half a {fmt}", data[: len(data) // 2], bad
        yield f"{fmt} less its last tenth", data[: len(data) * 9 // 10], bad
        yield f"head of a {fmt}", data[:20], bad
        yield f"magic of a {fmt}", data[:12] if fmt in ("WEBP", "AVIF") else data[:8], bad

    yield "jpeg: start only", b"\xff\xd8\xff", bad
    yield "jpeg: start and end", b"\xff\xd8\xff\xd9", bad
    yield "jpeg: progressive cut", save(noisy(), "JPEG", progressive=True)[:-2000], bad
    yield "jpeg: 65535 x 65535", jpeg_with_size(65535, 65535), big
    yield "jpeg: no height", jpeg_with_size(64, 0), bad
    progressive = save(plain((800, 800)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield "jpeg: 500 scans", progressive[:-2] + scan * 500 + b"\xff\xd9", {"too_many_scans"}

    rows = zlib.compress(bytes(64 * 3 + 1) * 48)
    yield "png: 50000 x 50000", png(50_000, 50_000, rows), big
    yield (
        "png: 10000 x 10000, true bomb",
        png(10_000, 10_000, zlib.compress(bytes(10_000 * 1251)), depth=1, colour=0),
        big,
    )
    yield "png: 2^31 - 1 wide", png(2**31 - 1, 1, rows), big
    yield "png: no width", png(0, 48, rows), bad
    yield "png: broken zlib", png(64, 48, b"\x00" + rows[1:]), bad
    yield "png: depth 3", png(64, 48, rows, depth=3), bad
    yield "png: wrong checksum", noise["PNG"][:29] + b"\x00\x00\x00\x00" + noise["PNG"][33:], bad
    yield (
        "webp: canvas of 2^24 x 256",
        riff_webp(b"VP8X", bytes([2, 0, 0, 0]) + b"\xff\xff\xff\xff\x00\x00"),
        big,
    )
    yield "webp: lossless 16384 x 16384", riff_webp(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20)), big
    yield (
        "webp: lossy 16383 x 16383",
        riff_webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a\xff\x3f\xff\x3f" + bytes(20)),
        big,
    )
    yield "webp: unknown chunk", riff_webp(b"ABCD", bytes(40)), bad
    yield "webp: noise", riff_webp(b"VP8L", b"\x2f" + noisy().tobytes()[:300]), bad | big

    yield "gif: 65535 x 65535 screen", gif_with_screen(65535, 65535), big
    yield "gif: frame far outside its screen", gif_with_screen(8, 8, (60_000, 60_000, 5000, 5000)), big
    yield "gif: no frame", b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";", bad
    yield "gif: frame larger than its data", gif_with_screen(4000, 4000, (0, 0, 4000, 4000)), bad

    yield "bmp: 100000 wide", bmp_with(18, "<i", 100_000), big | bad
    yield "bmp: 30000 x 30000", bmp_with(18, "<Q", 30_000 << 32 | 30_000), big
    yield "bmp: negative width", bmp_with(18, "<i", -64), bad | big
    yield "bmp: 7 bits", bmp_with(28, "<H", 7), bad
    yield "bmp: unknown compression", bmp_with(30, "<I", 99), bad
    yield "bmp: run lengths", rle_bmp(64, 48, (b"\x40\x01\x00\x00") * 48 + b"\x00\x01"), unknown
    yield "bmp: run lengths, 64 million pixels", rle_bmp(64_000_000, 1, b"\x00\x01"), unknown

    yield "tiff: 60000 x 60000", tiff(tiff_grey(60_000, 60_000)), big
    tiled = [t for t in tiff_grey(64, 48, compression=8) if t[0] not in (273, 278, 279)]
    tiled += [(322, 4, 1, 60_000), (323, 4, 1, 60_000), (324, 4, 1, 200), (325, 4, 1, 100)]
    yield "tiff: tiles of 60000 x 60000", tiff(tiled, tail=bytes(400)), big
    yield "tiff: directory outside the file", b"II*\x00\xff\xff\xff\x7f", bad
    yield "tiff: directory that is its own next", tiff(tiff_grey(64, 48), next_ifd=8), bad
    yield "tiff: strip outside the file", tiff(tiff_grey(64, 48, offset=2**31)), bad
    yield "tiff: unknown compression", tiff(tiff_grey(64, 48, compression=60_000), tail=bytes(4000)), bad
    yield "tiff: tag of 4 billion values", tiff([*tiff_grey(64, 48), (700, 1, 2**32 - 1, 8)]), bad
    yield "tiff: no tags", tiff([]), bad
    yield (
        "tiff: not numbers",
        save(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
        {"bad_pixels"},
    )


def unnoticed() -> Iterator[tuple[str, bytes]]:
    yield "jpeg: taller than its data", jpeg_with_size(64, 4000)
    yield "png: rows missing", png(64, 4800, zlib.compress(bytes(64 * 3 + 1) * 48))


def rle_bmp(width: int, height: int, coded: bytes, compression: int = 1) -> bytes:
    palette = bytes(4) + bytes((40, 30, 200, 0)) + bytes(4 * 254)
    offset = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(coded), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(coded), 0, 0, offset) + header + palette + coded


def odd() -> Iterator[tuple[str, bytes, tuple[int, int, int]]]:
    """Everything here has one even colour at its centre."""
    yield (
        "jpeg: cmyk, inverted by Adobe's convention",
        save(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG"),
        (255, 0, 0),
    )
    yield "tiff: cmyk", save(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)
    yield "jpeg: grey", save(plain(mode="L", colour=(128,)), "JPEG"), GREY
    yield "jpeg: trailing bytes", save(plain(), "JPEG") + bytes(5000), RED
    yield "jpeg: progressive", save(plain(), "JPEG", progressive=True), RED
    broken = save(plain(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff" + bytes(9))
    yield "jpeg: broken exif", broken, RED
    yield "jpeg: orientation 99", save(plain(), "JPEG", exif=exif(99)), RED
    yield "jpeg: noise for a profile", save(plain(), "JPEG", icc_profile=noisy().tobytes()[:900]), RED
    yield (
        "jpeg: profile of another space",
        save(plain(mode="L", colour=(128,)), "JPEG", icc_profile=swapped_profile()),
        GREY,
    )
    yield (
        "jpeg: profile applied",
        save(plain(colour=(255, 0, 0)), "JPEG", icc_profile=swapped_profile()),
        (0, 0, 255),
    )
    yield (
        "jpeg: two pictures (mpo)",
        save(plain(), "MPO", save_all=True, append_images=[plain(colour=BLACK)]),
        RED,
    )

    grey16 = np.full((48, 64), 0x8000, np.uint16)
    yield "png: 16-bit grey", save(Image.fromarray(grey16), "PNG"), GREY
    row = b"\x00" + struct.pack(">HHH", 200 * 257, 30 * 257, 40 * 257) * 64
    yield "png: 16-bit colour", png(64, 48, zlib.compress(row * 48), depth=16, colour=2), RED
    row = b"\x00" + struct.pack(">HH", 0, 0x8000) * 64
    yield (
        "png: 16-bit grey with alpha",
        png(64, 48, zlib.compress(row * 48), depth=16, colour=4),
        (127, 127, 127),
    )
    clear16 = png_chunk(b"tRNS", struct.pack(">H", 0x8000))
    row = b"\x00" + struct.pack(">H", 0x8000) * 64
    yield (
        "png: 16-bit grey, clear",
        png(64, 48, zlib.compress(row * 48), depth=16, colour=0, before=clear16),
        WHITE,
    )
    yield "png: grey with alpha", save(Image.new("LA", (64, 48), (0, 0)), "PNG"), WHITE
    yield "png: alpha", save(Image.new("RGBA", (64, 48), (0, 0, 0, 0)), "PNG"), WHITE
    yield "png: half alpha", save(Image.new("RGBA", (64, 48), (0, 0, 0, 127)), "PNG"), GREY
    yield "png: palette", save(plain().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), RED
    palette = Image.new("P", (64, 48), 1)
    palette.putpalette([0, 0, 0, *RED])
    yield "png: palette, clear", save(palette, "PNG", transparency=1), WHITE
    yield "png: palette, alpha by entry", save(palette, "PNG", transparency=b"\xff\x00"), WHITE
    yield "png: colour key", save(plain(), "PNG", transparency=RED), WHITE
    yield "png: 1 bit", save(Image.new("1", (64, 48), 1), "PNG"), WHITE
    yield "png: animated", save(plain(), "PNG", save_all=True, append_images=[plain(colour=BLACK)]), RED
    yield (
        "png: much text within bounds",
        png(
            64,
            48,
            zlib.compress((b"\x00" + bytes(RED) * 64) * 48),
            before=png_chunk(b"tEXt", b"k\x00" + b"x" * 500_000),
        ),
        RED,
    )

    rows = zlib.compress((b"\x00" + bytes(RED) * 64) * 48)
    text = b"k\x00\x00" + zlib.compress(bytes(40_000_000), 9)
    for kind, body in ((b"zTXt", text), (b"iTXt", b"k\x00\x01" + text[1:]), (b"iCCP", text)):
        yield f"png: {kind.decode()} bomb", png(64, 48, rows, before=png_chunk(kind, body)), RED

    yield "webp: lossless", save(plain(), "WEBP", lossless=True), RED
    yield (
        "webp: clear",
        save(Image.new("RGBA", (64, 48), (9, 9, 9, 0)), "WEBP", lossless=True, exact=True),
        WHITE,
    )
    yield (
        "webp: animated",
        save(plain(), "WEBP", lossless=True, save_all=True, append_images=[plain(colour=BLACK)]),
        RED,
    )

    yield "gif: animated", save(plain(), "GIF", save_all=True, append_images=[plain(colour=BLACK)]), RED
    yield "gif: clear", save(palette, "GIF", transparency=1), WHITE

    yield "bmp: 1 bit", save(Image.new("1", (64, 48), 1), "BMP"), WHITE
    yield "bmp: upside down", bmp_with(22, "<i", -48), RED

    for order in ("<", ">"):
        wide = TiffImagePlugin.ImageFileDirectory_v2(
            b"II\x2a\x00" + bytes(4) if order == "<" else b"MM\x00\x2a" + bytes(4)
        )
        image = Image.frombytes(
            "I;16" if order == "<" else "I;16B", (64, 48), grey16.astype(order + "u2").tobytes()
        )
        yield f"tiff: 16-bit grey {order}", save(image, "TIFF", tiffinfo=wide), GREY
    changed = {258: 16, 262: 0, 279: 64 * 48 * 2}
    tags = [(tag, kind, count, changed.get(tag, value)) for tag, kind, count, value in tiff_grey(64, 48)]
    zero_white = tiff(tags)
    yield "tiff: 16-bit, white is zero", zero_white.ljust(200, b"\x00") + bytes(64 * 48 * 2), WHITE
    for low, high, name in ((0.0, 1.0, "unit"), (0.0, 200.0, "bytes"), (-3.0, 500.0, "any")):
        floats = np.full((48, 64), (low + high) / 2, np.float32)
        floats[0, 0], floats[0, 1] = low, high
        expected = {"unit": GREY, "bytes": (100, 100, 100), "any": GREY}[name]
        yield f"tiff: floats, {name}", save(Image.fromarray(floats), "TIFF"), expected
    yield "tiff: 32-bit", save(Image.fromarray(np.full((48, 64), 0x8000, np.int32)), "TIFF"), GREY
    yield "tiff: one value everywhere", save(Image.fromarray(np.full((48, 64), -5, np.int32)), "TIFF"), BLACK
    yield "tiff: two pages", save(plain(), "TIFF", save_all=True, append_images=[plain(colour=BLACK)]), RED
    yield (
        "tiff: deflate, alpha",
        save(Image.new("RGBA", (64, 48), (0, 0, 0, 0)), "TIFF", compression="tiff_deflate"),
        WHITE,
    )
    yield "tiff: jpeg inside", save(plain(), "TIFF", compression="jpeg"), RED
    yield "tiff: lab", save(Image.new("LAB", (64, 48), (255, 128, 128)), "TIFF"), WHITE

    yield "avif: alpha", save(Image.new("RGBA", (64, 48), (0, 0, 0, 0)), "AVIF"), WHITE
    yield "avif: animated", save(plain(), "AVIF", save_all=True, append_images=[plain(colour=BLACK)]), RED

    for size in ((1, 1), (1, 5000), (5000, 1), (2, 3)):
        for fmt in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
            options = {"lossless": True} if fmt == "WEBP" else {}
            yield f"{fmt.lower()}: {size[0]} x {size[1]}", save(plain(size), fmt, **options), RED
