"""An AVIF file walked before its codec sees it: sizes are read where the codec will read them, not only where
the file states them, and what is no still picture is struck out in place.

AVIF is ISOBMFF (ISO/IEC 14496-12, 23008-12): boxes in boxes, where `meta` lists items, where their bytes lie
and what they are. A picture's size is a property of its item, while the codec goes by the header of the AV1
stream, which may state another: a file of 100 bytes can make it fill a frame of 65536×65536. EXIF and XMP are
renamed so that nobody parses them, and a film is taken for its still picture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from moonshelf.errors import ImageError

_BOXES, _ITEMS = 2_000, 600  # in a file; a picture of 50 million pixels in tiles of 512×512 has 200 items
_UNITS, _FRAMES = 5_000, 8  # of the stream of one item; layers of a progressive picture are frames

Box = tuple[bytes, int, int]  # its type, where its content begins and ends


@dataclass
class _Meta:
    primary: int = 0
    kinds: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # by item, with the place of the type
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by item: offset and length
    inside: set[int] = field(default_factory=set)  # items whose offsets count from `idat`
    idat: int = 0
    sizes: list[tuple[int, int] | None] = field(default_factory=list)  # of each property that is a size
    properties: dict[int, list[int]] = field(default_factory=dict)  # by item


def stripped(data: bytes, max_pixels: int) -> tuple[bytes, tuple[int, int]]:
    """(the file without EXIF, XMP and films, (width, height) of its picture); raises `ImageError`.

    Frames of all streams may have twice `max_pixels` altogether: there are alpha and thumbnails."""
    try:
        return _stripped(bytearray(data), max_pixels)
    except (struct.error, IndexError):
        raise ImageError("corrupt", "the AVIF is damaged or cut short") from None


def _stripped(data: bytearray, max_pixels: int) -> tuple[bytes, tuple[int, int]]:
    meta = None
    steps = iter(range(_BOXES))
    for kind, start, end in _boxes(data, 0, len(data), steps):
        if kind == b"ftyp":
            for at in (start, *range(start + 8, end - 3, 4)):
                if data[at : at + 4] == b"avis":  # a film: what else is in the file is its still picture
                    data[at : at + 4] = b"avif"
        elif kind == b"meta":
            if meta is not None:
                raise _damaged()
            meta = _meta(data, start + 4, end, steps)
        elif kind == b"moov":
            at = data.rindex(b"moov", 0, start)
            data[at : at + 4] = b"free"
    if meta is None or len(meta.kinds) > _ITEMS:
        raise _damaged()
    if sum(length for extents in meta.extents.values() for _, length in extents) > 2 * len(data):
        raise _damaged()
    pixels = 0
    for item, (kind, at) in meta.kinds.items():
        if kind in (b"Exif", b"mime"):
            data[at : at + 4] = b"skip"
        elif kind == b"av01":
            base = meta.idat if item in meta.inside else 0
            stream = b"".join(
                data[base + at : base + at + length] for at, length in meta.extents.get(item, [])
            )
            pixels += _frame(stream)
    if pixels > 2 * max_pixels:
        raise ImageError("too_many_pixels", f"the AVIF unpacks to {pixels:,} pixels")
    for number in meta.properties.get(meta.primary, []):
        if 0 < number <= len(meta.sizes) and (size := meta.sizes[number - 1]):
            return bytes(data), size
    raise _damaged()


def _damaged() -> ImageError:
    return ImageError("corrupt", "the AVIF is damaged or cut short")


def _boxes(data: bytearray, start: int, end: int, steps: Iterator[int]) -> Iterator[Box]:
    while start + 8 <= end:
        if next(steps, None) is None:
            raise ImageError("too_much_metadata", f"the AVIF is made of more than {_BOXES:,} boxes")
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        size = size or end - start
        if start + size > end or content > start + size:
            raise ImageError("truncated", "the AVIF is cut short")
        yield kind, content, start + size
        start += size


def _meta(data: bytearray, start: int, end: int, steps: Iterator[int]) -> _Meta:
    meta = _Meta()
    seen = set()
    for kind, at, stop in _boxes(data, start, end, steps):
        if kind in seen:
            raise _damaged()
        seen.add(kind)
        reader = _Reader(data, at, stop)
        if kind == b"pitm":
            meta.primary = reader.number(4 if reader.version() else 2)
        elif kind == b"idat":
            meta.idat = at
        elif kind == b"iinf":
            reader.number(4 if reader.version() else 2)
            for _, inner, inner_end in _boxes(data, reader.at, stop, steps):
                entry = _Reader(data, inner, inner_end)
                item = entry.number(4 if entry.version() == 3 else 2)
                meta.kinds[item] = bytes(data[entry.at + 2 : entry.at + 6]), entry.at + 2
        elif kind == b"iloc":
            _locations(reader, meta)
        elif kind == b"iprp":
            for inner_kind, inner, inner_end in _boxes(data, at, stop, steps):
                if inner_kind == b"ipco":
                    for property_kind, body, _ in _boxes(data, inner, inner_end, steps):
                        size = struct.unpack_from(">II", data, body + 4) if property_kind == b"ispe" else None
                        meta.sizes.append(size)
                elif inner_kind == b"ipma":
                    _associations(_Reader(data, inner, inner_end), meta)
    return meta


class _Reader:
    """Big-endian numbers one after the other, none of them from behind the end of a box."""

    def __init__(self, data: bytearray, start: int, end: int) -> None:
        self.data, self.at, self.end = data, start, end
        self.flags = 0

    def number(self, width: int) -> int:
        self.at += width
        if self.at > self.end:
            raise _damaged()
        return int.from_bytes(self.data[self.at - width : self.at], "big")

    def version(self) -> int:
        version, self.flags = self.number(1), self.number(3)
        return version


def _locations(reader: _Reader, meta: _Meta) -> None:
    version = reader.version()
    widths, more = reader.number(1), reader.number(1)
    offset_width, length_width, base_width, index_width = widths >> 4, widths & 15, more >> 4, more & 15
    steps = 0
    for _ in range(reader.number(4 if version == 2 else 2)):
        item = reader.number(4 if version == 2 else 2)
        if version and reader.number(2) & 15 == 1:
            meta.inside.add(item)
        reader.number(2)
        base = reader.number(base_width)
        extents = []
        for _ in range(reader.number(2)):
            steps += 1
            if steps > _ITEMS:
                raise ImageError("too_much_metadata", f"the AVIF lies in more than {_ITEMS} parts")
            if version:
                reader.number(index_width)
            extents.append((base + reader.number(offset_width), reader.number(length_width)))
        meta.extents[item] = extents


def _associations(reader: _Reader, meta: _Meta) -> None:
    version = reader.version()
    for _ in range(reader.number(4)):
        item = reader.number(4 if version else 2)
        wide = reader.flags & 1
        numbers = [
            reader.number(2 if wide else 1) & (0x7FFF if wide else 0x7F) for _ in range(reader.number(1))
        ]
        meta.properties.setdefault(item, []).extend(numbers)


# ---------------------------------------------------------------------------------------- AV1 streams


def _frame(stream: bytes) -> int:
    """Pixels of the largest frame that a stream's sequence headers allow, 0 without any."""
    at, units, frames, pixels = 0, 0, 0, 0
    while at < len(stream):
        header = stream[at]
        at += 2 if header & 4 else 1
        size = len(stream) - at
        if header & 2:
            size, shift = 0, 0
            while True:  # LEB128
                byte = stream[at]
                at += 1
                size |= (byte & 127) << shift
                shift += 7
                if not byte & 128:
                    break
                if shift > 56:
                    raise _damaged()
        kind = header >> 3 & 15
        units, frames = units + 1, frames + (kind in (3, 6))
        if units > _UNITS or frames > _FRAMES:
            raise ImageError("too_much_metadata", "the AVIF holds very many frames in one picture")
        if kind == 1:
            pixels = max(pixels, _sequence(stream[at : at + min(size, 1_000)]))
        at += size
    return pixels * max(frames, 1)


def _sequence(header: bytes) -> int:
    """Pixels of the largest frame by a sequence header (AV1 specification, 5.5)."""
    bits = int.from_bytes(header, "big")
    left = 8 * len(header)

    def take(count: int) -> int:
        nonlocal left
        left -= count
        if left < 0:
            raise _damaged()
        return bits >> left & (1 << count) - 1

    take(4)  # profile, still picture
    reduced = take(1)
    if reduced:
        take(5)
    else:
        if take(1):  # timing, which only films have
            raise ImageError("unsupported_format", "the AVIF is a film")
        delays = take(1)
        for _ in range(take(5) + 1):  # operating points
            take(12)
            if take(5) > 7:
                take(1)
            if delays and take(1):
                take(4)
    width_bits, height_bits = take(4) + 1, take(4) + 1
    width, height = take(width_bits) + 1, take(height_bits) + 1
    if reduced:
        return width * height
    # A frame may state its own size in as many bits: the header's is no bound then.
    return (1 << width_bits) * (1 << height_bits)
