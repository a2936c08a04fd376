"""What a picture's file says of itself, read before a codec sees it, and what is left of it for the codec.

A few bytes can make a codec fill gigabytes or work for minutes: metadata that is joined, unpacked or parsed,
thousands of strips, frames or scans, sizes that no data stands behind. So each format's container is walked
here, in steps that are counted, and a file is made of the parts that hold pixels; text, comments, thumbnails,
further frames and pages never reach a decoder. Two things are kept of the rest: the orientation of EXIF, and
the first ICC profile where it is of a kind that a colour transform is built from quickly.

Nothing here imports Pillow. AVIF, whose parts have fixed places, is walked in `avif` and patched instead.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moonshelf.errors import ImageError
from moonshelf.images import avif

_PARTS = 5_000  # segments of a JPEG, chunks of a WEBP, entries of a TIFF: real files have up to some hundreds
_MANY_PARTS = 100_000  # chunks of a PNG and blocks of a GIF: 16 MB in blocks of 255 bytes are 66,000

# In coded data 0xFF is followed by 0x00 or a restart mark, so that the next segment can be found.
_JPEG_MARK = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])", re.DOTALL)


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. Pixels and sides count the canvas before it is turned or shrunk.

    A JPEG of 6000×8000 passes; what needs more memory per pixel is stopped by `max_memory` before that.
    """

    max_bytes: int = 16 * 1024 * 1024  # of the file
    max_pixels: int = 50_000_000
    max_side: int = 30_000
    max_aspect: int = 5_000  # a line of 5000×1 is padded later; beyond it nothing is left to see
    max_memory: int = 300_000_000  # bytes while it is decoded
    max_scans: int = 100  # of a JPEG; each costs a walk over all its pixels
    max_profile_bytes: int = 4 * 1024 * 1024  # larger ICC profiles are dropped


@dataclass(frozen=True)
class Contents:
    """A picture's file, reduced to its pixels. `data` is for the codec of `name`."""

    name: str
    data: bytes
    size: tuple[int, int]  # before the orientation is applied
    memory: int  # bytes that the codec takes for itself, beside the pixels that it gives
    per_pixel: int = 4  # bytes of a decoded pixel, with what the codec keeps beside it
    orientation: int = 1
    profile: bytes | None = None


def read(data: bytes, name: str, limits: Limits) -> Contents:
    """Contents of a file of the format `name`, within the limits; `ImageError` says what is wrong."""
    try:
        found = _READERS[name](data, limits)
    except (struct.error, IndexError):
        raise ImageError("truncated", f"the {name} is cut short") from None
    check_size(found.size, limits)
    return found


def check_size(size: tuple[int, int], limits: Limits) -> None:
    shorter, longer = sorted(size)
    if shorter < 1:
        raise ImageError("corrupt", "the image has no pixels")
    for excess, taken in (
        (shorter * longer > limits.max_pixels, f"{limits.max_pixels:,} pixels"),
        (longer > limits.max_side, f"sides of {limits.max_side:,}"),
        (longer > shorter * limits.max_aspect, f"a ratio of {limits.max_aspect:,}:1"),
    ):
        if excess:
            raise ImageError(
                "too_many_pixels", f"the image has {size[0]}×{size[1]} pixels, at most {taken} are taken"
            )


# ---------------------------------------------------------------------------------------------- JPEG


def _jpeg(data: bytes, limits: Limits) -> Contents:
    kept, exif, profiles = [b"\xff\xd8"], b"", dict[int, bytes]()
    frame, scans, first_scan, end = b"", 0, 0, len(data)
    position = 2
    for _ in _counted("JPEG", _PARTS):
        mark = _JPEG_MARK.search(data, position)
        if mark is None:
            break
        kind = mark[1][0]
        if kind == 0xD9:
            end = mark.end()
            break
        body = data[mark.end() + 2 : mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")]
        # Skip the segment, which may hold anything; after a scan's header the search skips its coded data.
        position = mark.end() + 2 + len(body)
        if kind == 0xDA:
            first_scan = first_scan or mark.end() - 2
            scans += 1
            if scans > limits.max_scans:
                raise ImageError("too_many_scans", f"the JPEG has more than {limits.max_scans} scans")
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            if kind > 0xC2:
                raise ImageError("unsupported_format", "the JPEG is lossless, hierarchical or arithmetic")
            if frame:
                raise ImageError("corrupt", "the JPEG holds two frames")
            frame = bytes([kind]) + body
        elif kind == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body[6:]
        elif kind == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            profiles.setdefault(body[12], body[14:])
        # Tables, restart intervals, and the two segments that say which colours the components are.
        if not first_scan and (kind in (0xC0, 0xC1, 0xC2, 0xC4, 0xDB, 0xDD) or _says_colours(kind, body)):
            kept.append(struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body)
    if not frame or not scans:
        raise ImageError("corrupt", "the JPEG is damaged or cut short")
    height, width, components = struct.unpack_from(">HHB", frame, 2)
    if components not in (1, 3, 4):
        raise ImageError("corrupt", f"the JPEG has {components} components")
    check_size((width, height), limits)
    if width * height * scans > 20 * limits.max_pixels:
        raise ImageError("too_many_scans", f"the JPEG has {scans} scans of {width}×{height} pixels")
    memory = 0
    if frame[0] == 0xC2 or scans > 1:  # all coefficients are kept, two bytes each, until the last scan
        factors = [(frame[8 + 3 * i] >> 4, frame[8 + 3 * i] & 15) for i in range(components)]
        most = max(h for h, _ in factors) * max(v for _, v in factors)
        memory = 2 * width * height * sum(h * v for h, v in factors) // max(most, 1)
    profile = _profile(b"".join(profiles[i] for i in sorted(profiles)), limits)
    made = b"".join(kept) + data[first_scan:end]
    return Contents("JPEG", made, (width, height), memory, 4, orientation(exif), profile)


def _says_colours(kind: int, body: bytes) -> bool:
    return (kind == 0xE0 and body[:5] == b"JFIF\0") or (kind == 0xEE and body[:5] == b"Adobe")


# ----------------------------------------------------------------------------------------------- PNG


def _png(data: bytes, limits: Limits) -> Contents:
    kept: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    exif, profile, position = b"", b"", 8
    for _ in _counted("PNG", _MANY_PARTS):
        if position == len(data):  # without an end mark, but whole
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        body, position = data[position + 8 : position + 8 + length], position + 12 + length
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if position > len(data):
                raise ImageError("truncated", "the PNG is cut short")
            if zlib.crc32(kind + body) != int.from_bytes(data[position - 4 : position], "big"):
                raise ImageError("corrupt", "the PNG is damaged")
            if kind == b"IEND":
                break
            if kind == b"IDAT":
                pixels.append(body)
            else:
                kept.setdefault(kind, body)
        elif kind == b"eXIf":
            exif = exif or body
        elif kind == b"iCCP" and not profile:
            profile = _unpacked(body.partition(b"\0")[2][1:], limits.max_profile_bytes)
    if b"IHDR" not in kept or not pixels:
        raise ImageError("corrupt", "the PNG is damaged or cut short")
    width, height, depth, colour = struct.unpack_from(">IIBB", kept[b"IHDR"])
    kept |= {b"IDAT": b"".join(pixels), b"IEND": b""}
    made = data[:8]
    for kind in (one for one in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND") if one in kept):
        body = kept[kind]
        check = zlib.crc32(body, zlib.crc32(kind))
        made = b"".join((made, struct.pack(">I", len(body)), kind, body, struct.pack(">I", check)))
    per_pixel = 1 if colour in (0, 3) and depth <= 8 else 2 if colour == 0 else 4
    found = _profile(profile, limits)
    return Contents("PNG", made, (width, height), len(made), per_pixel, orientation(exif), found)


def _unpacked(data: bytes, most: int) -> bytes:
    """Nothing if it is damaged or unpacks to more."""
    try:
        worker = zlib.decompressobj()
        body = worker.decompress(data, most)
    except zlib.error:
        return b""
    return body if worker.eof else b""


# ---------------------------------------------------------------------------------------------- WEBP


def _webp(data: bytes, limits: Limits) -> Contents:
    canvas: tuple[int, int] | None = None
    kept: list[bytes] = []
    exif, profile, pixels, animated = b"", b"", False, False
    for kind, body in _chunks(data, 12):
        if kind == b"VP8X" and canvas is None:
            canvas = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
            check_size(canvas, limits)
            animated = bool(body[0] & 2)
            kept.append(_chunk(kind, bytes([body[0] & 0x12]) + body[1:10]))  # no profile, EXIF or XMP
        elif kind == b"EXIF":
            exif = exif or body.removeprefix(b"Exif\0\0")
        elif kind == b"ICCP":
            profile = profile or body
        elif pixels:
            continue  # further frames
        elif kind in (b"VP8 ", b"VP8L"):
            canvas, pixels = _webp_frame(kind, body, canvas, limits), True
            kept.append(_chunk(kind, body))
        elif kind == b"ANMF" and animated:
            inner = [part for part in _chunks(body, 16) if part[0] in (b"ALPH", b"VP8 ", b"VP8L")][:2]
            for part in inner:
                if part[0] != b"ALPH":
                    _webp_frame(*part, canvas, limits)
            kept.append(_chunk(kind, body[:16] + b"".join(_chunk(*part) for part in inner)))
            pixels = True
        elif kind in (b"ALPH", b"ANIM"):
            kept.append(_chunk(kind, body))
    if canvas is None or not pixels:
        raise ImageError("corrupt", "the WEBP file is damaged or cut short")
    made = b"WEBP" + b"".join(kept)
    made = b"RIFF" + struct.pack("<I", len(made)) + made
    # Two canvases of the animation decoder, the copy that it gives, and Pillow's: measured, 17 bytes a pixel.
    return Contents("WEBP", made, canvas, len(made), 17, orientation(exif), _profile(profile, limits))


def _chunks(data: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    for _ in _counted("WEBP", _PARTS):
        if position + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 8 + length]
        if len(body) < length and kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
            raise ImageError("truncated", "the WEBP is cut short")
        yield kind, body
        position += 8 + length + length % 2


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _webp_frame(kind: bytes, body: bytes, canvas: tuple[int, int] | None, limits: Limits) -> tuple[int, int]:
    """The canvas, or the frame's own size where there is none; a frame larger than either is refused."""
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", body, 1)[0]
        size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = struct.unpack_from("<HH", body, 6)
        size = width & 0x3FFF, height & 0x3FFF
    check_size(size, limits)
    if canvas is not None and (size[0] > canvas[0] or size[1] > canvas[1]):
        raise ImageError("corrupt", "the WEBP has a frame larger than its canvas")
    return canvas or size


# ------------------------------------------------------------------------------------------ GIF, BMP


def _gif(data: bytes, limits: Limits) -> Contents:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = start = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control = b""
    steps = _counted("GIF", _MANY_PARTS)
    for _ in steps:
        kind = data[position]
        if kind == 0x21:
            body = position + 2
            end = _after_blocks(data, body, steps)
            if data[position + 1] == 0xF9:
                control = data[position:end]
            position = end
        elif kind == 0x2C:
            left, top, wide, high, local = struct.unpack_from("<HHHHB", data, position + 1)
            body = position + 11 + (3 << (local & 7) + 1 if local & 0x80 else 0)
            end = _after_blocks(data, body, steps)
            made = data[:start] + control[:8] + data[position:end] + b";"
            # Pillow enlarges the screen where the first frame is larger, and keeps it while it unpacks.
            size = max(width, left + wide), max(height, top + high)
            return Contents("GIF", made, size, len(made), 2)
        elif kind == 0x3B:
            break
        else:
            position += 1  # filling between blocks, as decoders take it
    raise ImageError("corrupt", "the GIF holds no picture or is cut short")


def _after_blocks(data: bytes, position: int, steps: Iterator[int]) -> int:
    """Where a chain of blocks ends, each a byte of length and as many bytes."""
    while length := data[position]:
        position += length + 1
        next(steps)
    return position + 1


def _bmp(data: bytes, limits: Limits) -> Contents:
    (offset, header) = struct.unpack_from("<II", data, 10)
    compression = 0
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
    else:
        width, height, _, bits, compression = struct.unpack_from("<IiHHI", data, 18)
    if compression in (1, 2):
        raise ImageError("unsupported_format", "the BMP is run-length coded; save it as PNG")
    if compression not in (0, 3) or bits not in (1, 4, 8, 16, 24, 32):
        raise ImageError("corrupt", "the BMP is of no known kind")
    size = width, abs(height)
    check_size(size, limits)
    if offset + (width * bits + 31) // 32 * 4 * abs(height) > len(data):
        raise ImageError("truncated", "the BMP is cut short")
    return Contents("BMP", data, size, 0)


# ---------------------------------------------------------------------------------------------- TIFF

_TIFF_SIZES = {1: 1, 3: 2, 4: 4, 5: 8, 7: 1, 16: 8}  # bytes of a value by type; no other is kept
_TIFF_KEPT = {  # tags that decide pixels, and how many values of each are taken
    256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 266: 1, 273: 60_000, 277: 1, 278: 1, 279: 60_000, 284: 1,
    317: 1, 320: 768, 322: 1, 323: 1, 324: 60_000, 325: 60_000, 338: 8, 339: 8, 347: 65_536, 529: 3,
    530: 2, 532: 6,
}  # fmt: skip
# None, LZW, JPEG, Deflate under two numbers, PackBits: those that photographs are kept in.
_TIFF_CODECS = (1, 5, 7, 8, 32773, 32946)


def _tiff(data: bytes, limits: Limits) -> Contents:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count_of, entry, width_of = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    directory = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    (count,) = struct.unpack_from(order + count_of, data, directory)
    if count > _PARTS:
        raise ImageError("too_much_metadata", f"the TIFF has more than {_PARTS:,} tags")
    size_of_entry = struct.calcsize("=" + entry)
    entries: dict[int, bytes] = {}
    values_of: dict[int, tuple[int, ...]] = {}
    profile = b""
    for i in range(count):
        at = directory + struct.calcsize("=" + count_of) + i * size_of_entry
        tag, kind, values, inline = struct.unpack_from(order + entry, data, at)
        most = 1 if tag == 274 else limits.max_profile_bytes if tag == 34675 else _TIFF_KEPT.get(tag, 0)
        if not most or tag in values_of:
            continue
        length = values * _TIFF_SIZES.get(kind, 0)
        place = at + size_of_entry - width_of
        if length > width_of:
            place = struct.unpack(order + ("Q" if big else "I"), inline)[0]
        if not length or values > most or place + length > len(data):
            if tag in (274, 34675):
                continue
            raise ImageError(
                "too_much_metadata" if values > most else "corrupt", f"the TIFF is damaged in its tag {tag}"
            )
        if tag == 34675:
            profile = data[place : place + length]
            continue
        number = {1: "B", 3: "H", 4: "I", 5: "Q", 7: "B", 16: "Q"}[kind]
        values_of[tag] = struct.unpack_from(f"{order}{values}{number}", data, place)
        if tag != 274:
            entries[tag] = data[at : at + size_of_entry]
    value = {tag: values[0] for tag, values in values_of.items()}
    size = value.get(256, 0), value.get(257, 0)
    check_size(size, limits)
    if value.get(259, 1) not in _TIFF_CODECS:
        raise ImageError("corrupt", f"the TIFF is compressed by method {value[259]}, which is not taken")
    if value.get(277, 1) > 6:
        raise ImageError("corrupt", f"the TIFF has {value[277]} samples a pixel")
    wide, high = value.get(322) or size[0], value.get(323) or min(value.get(278) or size[1], size[1])
    across, down = -(-size[0] // wide), -(-size[1] // high)
    if across * down > _TIFF_KEPT[324]:
        raise ImageError("too_much_metadata", f"the TIFF is cut into {across * down:,} parts")
    covered = across * wide * down * high
    if covered > 2 * limits.max_pixels:
        raise ImageError("too_many_pixels", f"the TIFF has tiles of {wide}×{high} pixels")
    if value.get(259) == 7 and data.count(b"\xff\xda") > across * down * 4 + limits.max_scans:
        raise ImageError("too_many_scans", "the TIFF holds JPEGs of very many scans")
    starts, lengths = (values_of.get(a) or values_of.get(b) or () for a, b in ((273, 324), (279, 325)))
    if len(starts) != len(lengths) or sum(lengths) > 2 * len(data):  # parts that share bytes cost them each
        raise ImageError("corrupt", "the TIFF is damaged in the table of its parts")
    if max((a + b for a, b in zip(starts, lengths, strict=True)), default=1 << 64) > len(data):
        raise ImageError("truncated", "the TIFF is cut short")
    # A directory of what was kept, behind everything else, and none after it.
    made = bytearray(data + b"\0" * (len(data) % 2))
    struct.pack_into(order + ("Q" if big else "I"), made, 8 if big else 4, len(made))
    made += struct.pack(order + count_of, len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    made += b"\0" * width_of
    part = 8 * wide * high  # of up to four samples of 16 bits
    return Contents("TIFF", bytes(made), size, part, 4, _known(value.get(274, 1)), _profile(profile, limits))


# ---------------------------------------------------------------------------------------------- AVIF


def _avif(data: bytes, limits: Limits) -> Contents:
    made, size = avif.stripped(data, limits.max_pixels)
    # Frames of the codec, up to 12 bits in three planes and alpha, the copy given and Pillow's.
    return Contents("AVIF", made, size, len(made), 24)


# ------------------------------------------------------------------------------- EXIF, ICC profiles


def orientation(exif: bytes) -> int:
    """EXIF orientation, 1 where there is none or it cannot be read: bad metadata is no reason to refuse."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, directory)
        for i in range(min(count, _PARTS)):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, directory + 2 + 12 * i)
            if tag == 0x0112:
                return _known(value) if kind == 3 else 1
    except struct.error:
        pass
    return 1


def _known(orientation: int) -> int:
    return orientation if 1 <= orientation <= 8 else 1


_CHANNELS = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}


def _profile(profile: bytes, limits: Limits) -> bytes | None:
    """The profile, if it is of an input, display or output device and describes it by a few curves, a matrix
    or one table. `mpet` elements, of which there may be thousands, and tables of other channels are not."""
    if not 132 <= len(profile) <= limits.max_profile_bytes:
        return None
    channels = _CHANNELS.get(profile[16:20])
    if channels is None or profile[12:16] not in (b"scnr", b"mntr", b"prtr", b"spac"):
        return None
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > 100 or len(profile) < 132 + 12 * count:
        return None
    for i in range(count):
        tag, offset = struct.unpack_from(">4sI", profile, 132 + 12 * i)
        kind = profile[offset : offset + 4]
        if kind == b"mpet" or (
            tag[:3] == b"A2B" and profile[offset + 8 : offset + 10] != bytes([channels, 3])
        ):
            return None
    return profile


def _counted(name: str, most: int) -> Iterator[int]:
    """So many steps and not one more."""
    yield from range(most)
    raise ImageError("too_much_metadata", f"the {name} is made of more than {most:,} parts")


_READERS: dict[str, Callable[[bytes, Limits], Contents]] = {
    "JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif, "BMP": _bmp, "TIFF": _tiff, "AVIF": _avif,
}  # fmt: skip
FORMATS = tuple(_READERS)
