"""The one image decoder: bytes from anywhere in, an upright RGB picture out, or an `ImageError`.

Feeds come from strangers, so everything here assumes hostile bytes. Seven formats are taken (JPEG, PNG, WEBP,
GIF, BMP, TIFF, AVIF), chosen by their first bytes and never by a file's name. `containers` reads what a file
says of itself, caps it, and leaves only what holds pixels, so that no metadata reaches a codec or Pillow's
parsers (nor do their warnings reach anybody); files that end early are refused. What decoding will take of
memory is known before it begins, and pictures that are decoded at the same time share one budget. Every
failure of Pillow becomes an `ImageError` whose text holds no address and no path.

Choices: animations and multi-page files give their first frame; transparency is flattened on white, as on
a shop's page; 16-bit samples are scaled to 8 bits; an embedded ICC profile is converted to sRGB, or
dropped where it is unusable; of the orientations that a file may state, EXIF's is followed. Pillow's global
settings and Python's warning filters are never touched, so `decode` may run in any number of threads. The
plugin classes are called directly because `Image.open` would warn about large pictures, and warnings cannot
be caught per thread.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from moonshelf import files, memory
from moonshelf.errors import ImageError, UserError
from moonshelf.images import containers
from moonshelf.images.containers import FORMATS, Contents, Limits

if TYPE_CHECKING:
    from moonshelf.product import ImageRef

# JpegImageFile rather than its factory: a multi-picture JPEG (MPO) is its first picture.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_STRIP = 1 << 20  # pixels of a decoded picture that are brought to 8 bits and shrunk at once
_COPIES = 4  # of a file, while its container is walked

DEFAULT = Limits()
SAME_PICTURE = 8  # of the 63 bits of `perceptual_hash`: at most so many differ in versions of one picture
_COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None] + 1) / 64)  # (8, 32)


class Fetcher(Protocol):
    """Gets the bytes of a URL or raises `ImageError`; `moonshelf.remote` has the one that ships."""

    def fetch(self, url: str, *, max_bytes: int) -> bytes: ...


def resolve_path(path: str, root: str | os.PathLike[str]) -> str:
    """Absolute path of a feed's image `path`, read relative to the feed's folder `root`.

    Absolute paths, `..` and symbolic links are followed first and judged by where they end: a feed from
    somebody else must not read other files of this machine. Raises `ImageError("outside_root")`.
    """
    try:
        base = Path(root).resolve()
        target = (base / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL bytes, loops of links, names too long
        raise ImageError("missing_file", "the image path cannot be used as a file name") from error
    if not target.is_relative_to(base):
        raise ImageError("outside_root", f"the image {_short(path)} lies outside the feed's folder")
    return str(target)


def read_bytes(
    ref: ImageRef,
    *,
    limits: Limits = DEFAULT,
    fetcher: Fetcher | None = None,
    root: str | os.PathLike[str] | None = None,
) -> bytes:
    """Encoded bytes of one picture, at most `limits.max_bytes`.

    A URL needs a `fetcher`, else `ImageError("remote_off")`. With `root`, a path that ends outside that
    folder is refused (`resolve_path`). Only regular files are read, never pipes, devices or folders.
    """
    if ref.data is not None:
        _check_bytes(len(ref.data), limits)
        return ref.data
    if ref.url is not None:
        if fetcher is None:
            raise ImageError("remote_off", "the image is a web address and fetching is off")
        data = fetcher.fetch(ref.url, max_bytes=limits.max_bytes)
        _check_bytes(len(data), limits)
        return data
    assert ref.path is not None
    return _read_file(ref.path if root is None else resolve_path(ref.path, root), limits)


def load(
    ref: ImageRef,
    *,
    limits: Limits = DEFAULT,
    fetcher: Fetcher | None = None,
    max_side: int | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Image.Image:
    """`read_bytes`, then `decode`."""
    data = read_bytes(ref, limits=limits, fetcher=fetcher, root=root)
    return decode(data, limits=limits, max_side=max_side)


def probe(data: bytes, *, limits: Limits = DEFAULT) -> tuple[int, int, str]:
    """(width, height, format) from the header, before EXIF rotation; nothing is decoded.

    Applies the caps on bytes, format, pixels and parts; `decode` may still find the file damaged.
    """
    found = _contents(data, limits)
    return *found.size, found.name


def decode(data: bytes, *, limits: Limits = DEFAULT, max_side: int | None = None) -> Image.Image:
    """RGB picture of 8 bits a channel, upright, flattened on white, colours in sRGB.

    `max_side` shrinks so that the longer side is at most that many pixels, keeping proportions (it never
    enlarges); a JPEG is then decoded at a fraction of its size. Waits while other threads decode what needs
    much memory. Raises `ImageError`, and `memory.Crowded` where requests hold that memory. Not noticed: rows
    that are missing although the coded data ends properly, which the codecs fill with an even colour.
    """
    if max_side is not None and max_side < 1:
        raise ValueError("max_side must be at least 1")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UserError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so that half files would pass as pictures; "
            "set it to False"
        )
    with memory.room(_COPIES * len(data)):
        found = _contents(data, limits)
    with memory.room(_cost(found, limits, max_side)):
        try:
            return _decoded(found, max_side)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError("out_of_memory", f"the {found.name} needs more memory than there is") from error
        except Exception as error:  # in our own words: Pillow's texts hold addresses, paths and internals
            if "truncated" in str(error).lower():
                raise ImageError("truncated", f"the {found.name} is cut short") from error
            raise ImageError("corrupt", f"the {found.name} is damaged or cut short") from error


def pad_to_aspect(image: Image.Image, max_ratio: float = 4.0) -> Image.Image:
    """The picture centred on white so that its longer side is at most `max_ratio` times the shorter.

    Vision towers refuse extreme strips (Qwen's processor above 200:1), and a 3000×1 picture is no reason
    to lose a product. Pictures within the ratio come back unchanged. Strips longer than 4,096 pixels are
    shrunk first, so that padding cannot itself become a bomb.
    """
    longer, shorter = max(image.size), min(image.size)
    if longer <= max_ratio * shorter:
        return image
    if target := _fitted(image.size, 4096):
        image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
        longer = max(image.size)
    floor = int(-(-longer // max_ratio))
    width, height = max(image.width, floor), max(image.height, floor)
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def perceptual_hash(picture: Image.Image) -> int | None:
    """63-bit hash of a picture that survives scaling and re-encoding: the signs of the low frequencies
    of its grey 32×32 version, against their median. Compare by the number of differing bits. None for a
    picture of one flat colour, which has nothing to compare."""
    grey = np.asarray(picture.convert("L").resize((32, 32)), dtype=np.float64)
    if grey.std() < 1:
        return None
    low = (_COSINES @ grey @ _COSINES.T).ravel()[1:]  # without the mean brightness
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big") >> 1


# ---------------------------------------------------------------------------------------------- files


def _read_file(path: str, limits: Limits) -> bytes:
    name = _short(path)
    try:
        data = files.read_regular(path, limits.max_bytes)
    except files.Irregular:
        raise ImageError("not_a_file", f"{name} is not a regular file") from None
    except files.TooLarge:
        raise _too_many_bytes(limits) from None
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise ImageError("missing_file", f"there is no file {name}") from error
    except OSError as error:
        raise ImageError("unreadable", f"{name} cannot be read: {error.strerror or 'I/O error'}") from error
    _check_bytes(len(data), limits)
    return data


def _check_bytes(size: int, limits: Limits) -> None:
    if size == 0:
        raise ImageError("empty", "the image is empty (0 bytes)")
    if size > limits.max_bytes:
        raise _too_many_bytes(limits)


def _too_many_bytes(limits: Limits) -> ImageError:
    return ImageError("too_many_bytes", f"the image has more than {limits.max_bytes:,} bytes")


def _short(path: str) -> str:
    """The file's own name, printable, for messages."""
    name = re.split(r"[/\\]", path.rstrip("/\\"))[-1][-80:]
    return "".join(c if c.isprintable() else "?" for c in name) or "the image"


# -------------------------------------------------------------------------------------------- headers


def _sniff(data: bytes) -> str:
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and re.match(
        rb"(?:.{4}){0,20}?avi[fs]", data[8 : int.from_bytes(data[:4], "big")], re.DOTALL
    ):
        return "AVIF"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<") and b"<svg" in start:
        what = "SVG"
    elif start.startswith(b"<"):
        what = "a web page or XML, not a picture"
    elif data[4:8] == b"ftyp":
        what = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC"}.get(data[8:12], "a video")
    else:
        what = "PDF" if start.startswith(b"%pdf") else "of no known kind"
    raise ImageError("unsupported_format", f"the file is {what}; {', '.join(FORMATS)} are taken")


def _contents(data: bytes, limits: Limits) -> Contents:
    _check_bytes(len(data), limits)
    return containers.read(data, _sniff(data), limits)


# --------------------------------------------------------------------------------------------- pixels


def _fitted(size: tuple[int, int], max_side: int) -> tuple[int, int] | None:
    """Size within `max_side`, or None where it fits already."""
    longer = max(size)
    if longer <= max_side:
        return None
    width, height = (max(1, round(side * max_side / longer)) for side in size)
    return width, height


def _decoded(found: Contents, max_side: int | None) -> Image.Image:
    image: Any = _PLUGINS[found.name](io.BytesIO(found.data))
    if image.size != found.size:
        raise ImageError("corrupt", f"the {found.name} states two sizes")
    target = _fitted(found.size, max_side) if max_side is not None else None
    if found.name == "JPEG" and target:
        image.draft(None, target)
    image.load()
    orientation = found.orientation
    if found.name == "AVIF":  # it turns pictures by properties of its own, which Pillow tells as EXIF
        orientation = containers.orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    turn = _UPRIGHT.get(orientation)
    profile = image.info.get("icc_profile") if found.name == "AVIF" else found.profile
    target = _fitted(image.size, max_side) if max_side is not None else None
    # First by a whole number, then by a filter: what `resize` does with a gap of 3, but strip by strip.
    across, down = (max(1, int(a / b / 3)) for a, b in zip(image.size, target or image.size, strict=True))
    picture = _to_8_bits(image, found.name, across, down)
    if target:
        box = (0, 0, image.width / across, image.height / down)
        picture = picture.resize(target, Image.Resampling.LANCZOS, box=box)
    picture = _to_srgb(picture, profile)
    return picture.transpose(turn) if turn is not None else picture


def _to_8_bits(image: Any, name: str, across: int, down: int) -> Image.Image:
    """The picture at 1/across and 1/down in L, RGB or CMYK, on white. Done in strips: besides the decoded
    picture there is only the result, whatever modes lie between."""
    scale = _range(image) if image.mode in ("I", "F") else (0.0, 1.0)
    inverted = name == "TIFF" and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    result: Image.Image | None = None
    for top, strip in _strips(image, down):
        part = _flatten(_strip_to_8_bits(strip, scale, inverted))
        if across * down > 1:
            part = part.reduce((across, down))
        if result is None:
            result = Image.new(part.mode, (-(-image.width // across), -(-image.height // down)))
        result.paste(part, (0, top // down))
    assert result is not None
    return result


def _strips(image: Any, down: int = 1) -> Iterator[tuple[int, Any]]:
    """Horizontal strips with their tops, of a height that `down` divides, but for the last one."""
    height = max(_STRIP // image.width // down, 1) * down
    for top in range(0, image.height, height):
        yield top, image.crop((0, top, image.width, min(top + height, image.height)))


def _range(image: Any) -> tuple[float, float]:
    """What black and white are in int32 or float32. These modes state no range, so it is guessed from the
    values: 0…1 (floats), 0…255 and 0…65535 are taken as such, else it goes from the least to the greatest."""
    ends = []
    for _, strip in _strips(image):
        samples = np.asarray(strip)
        if not np.isfinite(samples).all():
            raise ImageError("bad_pixels", "the image holds values that are not numbers")
        ends += [float(samples.min()), float(samples.max())]
    low, high = min(ends), max(ends)
    for known in (1.0, 255.0, 65535.0)[image.mode == "I" :]:
        if low >= 0 and high <= known:
            return 0.0, known
    return low, high


def _strip_to_8_bits(image: Any, scale: tuple[float, float], inverted: bool) -> Image.Image:
    """In a mode of 8 bits a channel: L, LA, RGB, RGBA or CMYK."""
    mode = image.mode
    if mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint16, copy=False)
        grey = (samples >> 8).astype(np.uint8)  # the high byte, as Pillow reads 16-bit colour
        if inverted:
            grey = 255 - grey  # white is zero: Pillow inverts 8 bits, but not 16
        if isinstance(clear := image.info.get("transparency"), int):
            grey[samples == clear] = 255
        return Image.fromarray(grey)
    if mode in ("I", "F"):
        low, high = scale
        span = high - low or 1.0
        unit = np.asarray(image).astype(np.float32) * np.float32(1 / span) - np.float32(low / span)
        return Image.fromarray((unit.clip(0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8))
    if mode == "1":
        mode, image = "L", image.convert("L")
    if mode in ("L", "RGB") and "transparency" in image.info:
        return image.convert("RGBA")
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    if mode == "P":
        return image.convert("RGBA" if "transparency" in image.info else "RGB")
    if mode in ("PA", "RGBa", "La"):
        return image.convert("LA" if mode == "La" else "RGBA")
    return image.convert("RGB")


def _flatten(image: Image.Image) -> Image.Image:
    """Transparency on white; L, RGB or CMYK comes back."""
    if image.mode not in ("LA", "RGBA"):
        return image
    colour = "L" if image.mode == "LA" else "RGB"
    ground = Image.new(colour, image.size, "white")
    ground.paste(image.convert(colour), mask=image.getchannel("A"))
    return ground


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """RGB with colours as the embedded profile says; an unusable profile is dropped."""
    if isinstance(profile, bytes):
        named_srgb = any("sRGB".encode(code) in profile[:4096] for code in ("ascii", "utf-16-be"))
        if not (image.mode == "RGB" and named_srgb):
            try:
                return ImageCms.applyTransform(image, _transform(profile, image.mode)) or image
            except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
                pass  # damaged, or made for another colour space than the picture's
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Building costs about as much as applying; shops have few profiles. Safe to share between threads."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


# -------------------------------------------------------------------------------------------- memory


def _cost(found: Contents, limits: Limits, max_side: int | None) -> int:
    """Bytes that decoding takes at most, but for small change; `ImageError` beyond the limit."""
    pixels, result = found.size[0] * found.size[1], 0
    if max_side is None or not (target := _fitted(found.size, max_side)):
        result = 2 * 4 * pixels  # brought to 8 bits, then to sRGB
    elif found.name == "JPEG":  # as `draft` will do
        ratio = min(found.size[0] // target[0], found.size[1] // target[1])
        pixels //= max(scale for scale in (1, 2, 4, 8) if scale <= max(ratio, 1)) ** 2
    cost = len(found.data) + found.memory + pixels * found.per_pixel + result
    if cost > (most := min(limits.max_memory, memory.room.size)):
        raise ImageError(
            "too_many_pixels",
            f"the {found.name} of {found.size[0]}×{found.size[1]} pixels would take {cost // 10**6:,} MB to "
            f"decode, at most {most // 10**6:,} are taken; save it smaller",
        )
    return cost
