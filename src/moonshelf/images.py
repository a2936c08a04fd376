"""The one image decoder: bytes from anywhere in, an upright RGB picture out, or an `ImageError`.

Feeds come from strangers, so everything here assumes hostile bytes. Six formats are taken (JPEG, PNG,
WEBP, GIF, BMP, TIFF), chosen by their first bytes and never by a file's name. Bytes are capped before
they are read and pixels before they are decoded, from the header alone; files that end early are refused.
Every failure of Pillow becomes an `ImageError` whose text holds no address and no path.

Choices: animations and multi-page files give their first frame; transparency is flattened on white, as on
a shop's page; 16-bit samples are scaled to 8 bits; an embedded ICC profile is converted to sRGB, or
dropped where it is unusable. Pillow's global settings and Python's warning filters are never touched, so
`decode` may run in any number of threads. The plugin classes are called directly because `Image.open`
would warn about large pictures before we can refuse them, and warnings cannot be caught per thread.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from moonshelf.errors import UserError

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
}
FORMATS = tuple(_PLUGINS)

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

# In coded data 0xFF is followed by 0x00 or a restart mark, so that the next segment can be found.
_JPEG_MARK = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])", re.DOTALL)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(Exception):
    """One picture cannot be used. `code` is short snake_case, `str()` one sentence without paths."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both, so that the error survives a process pool
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


SAME_PICTURE = 8  # of the 63 bits of `perceptual_hash`: at most so many differ in versions of one picture
_COSINES = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None] + 1) / 64)  # (8, 32)


@dataclass(frozen=True)
class Limits:
    """What one picture may cost. `max_pixels` counts the decoded canvas, `max_bytes` the encoded file."""

    max_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 64_000_000
    max_scans: int = 100  # of one JPEG; each costs a walk over all its pixels
    max_profile_bytes: int = 4 * 1024 * 1024  # larger ICC profiles are dropped


DEFAULT = Limits()


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
    return decode(
        read_bytes(ref, limits=limits, fetcher=fetcher, root=root), limits=limits, max_side=max_side
    )


def probe(data: bytes, *, limits: Limits = DEFAULT) -> tuple[int, int, str]:
    """(width, height, format) from the header, before EXIF rotation; nothing is decoded.

    Applies the caps on bytes, format and pixels; a file that ends early passes, only `decode` sees that.
    """
    image, name = _open(data, limits)
    return image.width, image.height, name


def decode(data: bytes, *, limits: Limits = DEFAULT, max_side: int | None = None) -> Image.Image:
    """RGB picture of 8 bits a channel, upright, flattened on white, colours in sRGB.

    `max_side` shrinks so that the longer side is at most that many pixels, keeping proportions (it never
    enlarges); a JPEG is then decoded at a fraction of its size. Raises `ImageError`. Not noticed: rows that
    are missing although the coded data ends properly, which the codecs fill with an even colour.
    """
    if max_side is not None and max_side < 1:
        raise ValueError("max_side must be at least 1")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UserError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so that half files would pass as pictures; "
            "set it to False"
        )
    image, name = _open(data, limits)
    try:
        if name == "JPEG":
            _check_scans(data, limits)
            if max_side is not None and (target := _fitted(image.size, max_side)):
                image.draft(None, target)
        image.load()
        profile = image.info.get("icc_profile")
        turn = _UPRIGHT.get(_orientation(image))
        picture = _flatten(_to_8_bits(image, name))
        if max_side is not None and (target := _fitted(picture.size, max_side)):
            picture = picture.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
        picture = _to_srgb(picture, profile, limits)
        return picture.transpose(turn) if turn is not None else picture
    except ImageError:
        raise
    except Exception as error:
        _refuse(error, name)


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
    # O_NONBLOCK: opening a pipe without a writer must not hang before fstat can refuse it.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: devices act when they are opened
            raise ImageError("not_a_file", f"{name} is not a regular file")
        with open(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not_a_file", f"{name} is not a regular file")
            _check_bytes(status.st_size, limits)
            data = file.read(limits.max_bytes + 1)
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
        raise ImageError("too_many_bytes", f"the image has more than {limits.max_bytes:,} bytes")


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
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<") and b"<svg" in start:
        what = "SVG"
    elif start.startswith(b"<"):
        what = "a web page or XML, not a picture"
    elif data[4:8] == b"ftyp":
        what = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"mif1": "HEIC"}.get(data[8:12], "a video")
    else:
        what = "PDF" if start.startswith(b"%pdf") else "of no known kind"
    raise ImageError("unsupported_format", f"the file is {what}; {', '.join(FORMATS)} are taken")


def _open(data: bytes, limits: Limits) -> tuple[Any, str]:
    """Lazy picture (header read, no pixels) and its format, within the caps."""
    _check_bytes(len(data), limits)
    name = _sniff(data)
    try:
        if name == "WEBP":  # its plugin allocates the whole canvas while opening
            _check_pixels(_webp_size(data), limits)
        image = _PLUGINS[name](io.BytesIO(data))
        _check_pixels(image.size, limits)
        if name == "TIFF":
            _check_tiles(image, limits)
    except ImageError:
        raise
    except Exception as error:
        _refuse(error, name)
    return image, name


def _check_pixels(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError("corrupt", "the image has no pixels")
    if width * height > limits.max_pixels:
        raise ImageError(
            "too_many_pixels",
            f"the image has {width}×{height} pixels, at most {limits.max_pixels:,} are taken",
        )


def _check_tiles(image: Any, limits: Limits) -> None:
    """A small TIFF may declare huge tiles, each of which is decoded whole."""
    width, height = (
        image.tag_v2.get(tag) or 0 for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
    )
    if width * height > limits.max_pixels:
        raise ImageError("too_many_pixels", f"the TIFF has tiles of {width}×{height} pixels")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return (int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError("corrupt", "the WEBP file is damaged or cut short")


def _check_scans(data: bytes, limits: Limits) -> None:
    """Refuse JPEGs of very many scans: small files of which each costs seconds of processor time."""
    if data.count(b"\xff\xda") <= limits.max_scans:  # quick, and at least the true number
        return
    scans, position = 0, 2
    while (mark := _JPEG_MARK.search(data, position)) and mark[1] != b"\xd9":
        scans += mark[1] == b"\xda"
        if scans > limits.max_scans:
            raise ImageError("too_many_scans", f"the JPEG has more than {limits.max_scans} scans")
        # Skip the segment, which may hold anything; after a scan's header the search skips its coded data.
        position = mark.end() + int.from_bytes(data[mark.end() : mark.end() + 2], "big")


def _refuse(error: Exception, name: str) -> NoReturn:
    """Say what happened in our own words: Pillow's texts hold addresses, paths and internals."""
    text = str(error).lower()
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        raise ImageError("too_many_pixels", f"the {name} unpacks to too many pixels") from error
    if isinstance(error, MemoryError):
        raise ImageError("out_of_memory", f"the {name} needs more memory than there is") from error
    if "truncated" in text:
        raise ImageError("truncated", f"the {name} is cut short") from error
    if "max_text" in text:
        raise ImageError(
            "too_much_metadata", f"the {name} carries too much text or too large a profile"
        ) from error
    raise ImageError("corrupt", f"the {name} is damaged or cut short") from error


# --------------------------------------------------------------------------------------------- pixels


def _fitted(size: tuple[int, int], max_side: int) -> tuple[int, int] | None:
    """Size within `max_side`, or None where it fits already."""
    longer = max(size)
    if longer <= max_side:
        return None
    width, height = (max(1, round(side * max_side / longer)) for side in size)
    return width, height


def _orientation(image: Any) -> int:
    """EXIF orientation, 1 where there is none or it cannot be read: bad metadata is no reason to refuse."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _to_8_bits(image: Any, name: str) -> Image.Image:
    """The picture in a mode of 8 bits a channel: L, LA, RGB, RGBA or CMYK."""
    mode = image.mode
    if mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint16, copy=False)
        grey = (samples >> 8).astype(np.uint8)  # the high byte, as Pillow reads 16-bit colour
        if name == "TIFF" and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            grey = 255 - grey  # white is zero: Pillow inverts 8 bits, but not 16
        if isinstance(clear := image.info.get("transparency"), int):
            grey[samples == clear] = 255
        return Image.fromarray(grey)
    if mode in ("I", "F"):
        return Image.fromarray(_wide_to_8_bits(np.asarray(image)))
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


def _wide_to_8_bits(samples: np.ndarray) -> np.ndarray:
    """(h, w) int32 or float32 to uint8. These modes state no range, so it is guessed from the values:
    0…1 (floats), 0…255 and 0…65535 are taken as such, anything else is stretched from least to greatest."""
    if not np.isfinite(samples).all():
        raise ImageError("bad_pixels", "the image holds values that are not numbers")
    low, high = float(samples.min()), float(samples.max())
    if low >= 0 and high <= 1 and samples.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    span = high - low or 1.0
    unit = samples.astype(np.float32) * np.float32(1 / span) - np.float32(low / span)
    return (unit.clip(0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _flatten(image: Image.Image) -> Image.Image:
    """Transparency on white; L, RGB or CMYK comes back."""
    if image.mode not in ("LA", "RGBA"):
        return image
    colour = "L" if image.mode == "LA" else "RGB"
    ground = Image.new(colour, image.size, "white")
    ground.paste(image.convert(colour), mask=image.getchannel("A"))
    return ground


def _to_srgb(image: Image.Image, profile: Any, limits: Limits) -> Image.Image:
    """RGB with colours as the embedded profile says; an unusable profile is dropped."""
    if isinstance(profile, bytes) and len(profile) <= limits.max_profile_bytes:
        named_srgb = any("sRGB".encode(code) in profile[:4096] for code in ("ascii", "utf-16-be"))
        if not (image.mode == "RGB" and named_srgb):
            try:
                return ImageCms.applyTransform(image, _transform(profile, image.mode)) or image
            except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
                pass  # damaged, or made for another colour space than the picture's
    # An ImageFile that is RGB already is copied, so that the result does not hold the encoded bytes.
    return image if type(image) is Image.Image and image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Building costs about as much as applying; shops have few profiles. Safe to share between threads."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
