"""The decoder on pictures as they should be, on odd ones, and on hostile ones."""

from __future__ import annotations

import ast
import copy
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

import costly_images as costly
import hostile_images as hostile
from moonshelf import images, memory
from moonshelf.errors import UserError
from moonshelf.images import FORMATS, ImageError, Limits
from moonshelf.product import ImageRef

pytestmark = pytest.mark.filterwarnings("error")  # Pillow's remarks about metadata reach nobody
SOURCES = Path(__file__).parent.parent / "src"
REFUSED, ODD, UNNOTICED = list(hostile.refused()), list(hostile.odd()), list(hostile.unnoticed())
VALID = [hostile.save(hostile.noisy((40, 30)), fmt) for fmt in FORMATS]


def code_of(call) -> str:
    with pytest.raises(ImageError) as caught:
        call()
    assert_clean(caught.value)
    return caught.value.code


def assert_clean(error: ImageError) -> None:
    """One short sentence: no address, no folder, no name of a Python class."""
    assert re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", error.code)
    assert 0 < len(str(error)) < 200 and "\n" not in str(error)
    assert not re.search(r"0x[0-9a-f]{4,}|BytesIO|object at|Error|/\w+/", str(error))


# --------------------------------------------------------------------------------------- hostile, odd


def test_corpus_is_large_and_its_names_are_unique():
    names = [name for name, *_ in REFUSED + ODD + UNNOTICED]
    assert len(names) == len(set(names)) and len(REFUSED) >= 60 and len(ODD) >= 40


@pytest.mark.parametrize(("data", "codes"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_hostile_file_is_refused_with_a_code(data, codes):
    assert code_of(lambda: images.decode(data)) in codes
    assert code_of(lambda: images.decode(data, max_side=16)) in codes


@pytest.mark.parametrize(("data", "colour"), [case[1:] for case in ODD], ids=[case[0] for case in ODD])
@pytest.mark.parametrize("max_side", [None, 16])
def test_odd_file_is_decoded_to_its_colour(data, colour, max_side):
    picture = images.decode(data, max_side=max_side)
    assert picture.mode == "RGB" and type(picture) is Image.Image
    if max_side is not None:
        assert max(picture.size) <= max_side
    centre = picture.getpixel((picture.width // 2, picture.height // 2))
    assert centre == pytest.approx(colour, abs=4)


@pytest.mark.parametrize("data", [data for _, data in UNNOTICED])
def test_rows_missing_from_well_formed_data_do_no_harm(data):
    assert images.decode(data).width == 64


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(VALID), st.floats(0, 1))
def test_a_cut_file_is_refused_or_whole(data, share):
    cut = data[: int(share * (len(data) - 1))]
    try:
        picture = images.decode(cut)
    except ImageError as error:
        assert error.code in ("empty", "truncated", "corrupt", "unsupported_format")
    else:  # only bytes behind the last pixel were lost
        assert np.array_equal(picture, images.decode(data))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), min_size=1, max_size=6),
)
def test_damaged_bytes_give_a_picture_or_an_image_error(data, edits):
    damaged = bytearray(data)
    for share, patch in edits:
        start = int(share * len(damaged))
        damaged[start : start + len(patch)] = patch
    limits = Limits(max_pixels=1_000_000)
    for call in (images.decode, images.probe):
        try:
            result = call(bytes(damaged), limits=limits)
        except ImageError as error:
            assert_clean(error)
        else:
            if call is images.decode:
                assert result.mode == "RGB" and result.width * result.height <= 1_000_000


# ----------------------------------------------------------------------------------------------- caps


def test_pixels_are_counted_before_decoding(monkeypatch):
    def decoded(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    data = hostile.save(hostile.plain((100, 100)), "PNG")
    assert code_of(lambda: images.decode(data, limits=Limits(max_pixels=9_999))) == "too_many_pixels"
    assert images.probe(data, limits=Limits(max_pixels=10_000)) == (100, 100, "PNG")


@pytest.mark.parametrize("side", [9_600, 14_000], ids=["where Pillow warns", "where Pillow refuses"])
def test_decompression_bomb_is_an_error_and_nothing_is_printed(side, recwarn):
    data = hostile.save(Image.new("1", (side, side)), "PNG")
    assert code_of(lambda: images.decode(data)) == "too_many_pixels"
    assert code_of(lambda: images.probe(data)) == "too_many_pixels"
    assert not recwarn.list


def test_a_webp_canvas_is_not_allocated_before_the_check(monkeypatch):
    monkeypatch.setitem(images._PLUGINS, "WEBP", lambda _: pytest.fail("the plugin was called"))
    data = dict((name, data) for name, data, _ in REFUSED)["webp: canvas of 2^24 x 256"]
    assert code_of(lambda: images.decode(data)) == "too_many_pixels"


def test_bytes_are_capped_for_memory_and_files(tmp_path):
    data = VALID[0]
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    for ref in (ImageRef(data=data), ImageRef(path=str(file))):
        assert images.read_bytes(ref, limits=Limits(max_bytes=len(data))) == data
        too_few = Limits(max_bytes=len(data) - 1)
        assert (
            code_of(lambda ref=ref, limits=too_few: images.read_bytes(ref, limits=limits)) == "too_many_bytes"
        )
    assert code_of(lambda: images.decode(data, limits=Limits(max_bytes=10))) == "too_many_bytes"


def test_half_files_are_refused_even_if_another_library_allows_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UserError, match="LOAD_TRUNCATED_IMAGES"):
        images.decode(VALID[0])


def test_no_global_setting_is_touched():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    script = (
        "import warnings, sys, numpy; from PIL import Image, ImageFile; kept = list(warnings.filters)\n"
        "from moonshelf import images\n"
        "assert warnings.filters == kept and not ImageFile.LOAD_TRUNCATED_IMAGES\n"
        f"assert Image.MAX_IMAGE_PIXELS == {before[0]} and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# --------------------------------------------------------------------------------------- time and memory

MEASURE = """
import os, resource, sys
import costly_images
from moonshelf import images

def memory(of):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(of)) / 1024

images.decode(costly_images.save(costly_images.plain(), "JPEG"))
for name, data in getattr(costly_images, sys.argv[1])():
    sys.stdout.flush()
    if child := os.fork():
        if os.waitpid(child, 0)[1]:
            sys.exit(name)
        continue
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before, spent = memory("VmRSS"), sum(os.times()[:2])
    try:
        answer = images.decode(data, max_side=320).mode
    except images.ImageError as error:
        answer = error.code
    print(name, answer, sum(os.times()[:2]) - spent, memory("VmHWM") - before, sep="|", flush=True)
    os._exit(0)
print("all|")
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured as Linux tells it")
@pytest.mark.parametrize("which", ["costly", pytest.param("large", marks=pytest.mark.slow)])
def test_costly_pictures_are_decoded_or_refused_within_bounds(which):
    """Seconds of processor time and MB above what there was before, each in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, which],
        cwd=Path(__file__).parent,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert not done.stderr, "Pillow's warnings, or a traceback"
    found = {line[0]: line[1:] for line in (line.split("|") for line in done.stdout.splitlines())}
    assert found.pop("all", None), "some took more than 30 s or 4 GB"
    refused = {
        "too_many_pixels",
        "too_much_metadata",
        "too_many_scans",
        "unsupported_format",
        "corrupt",
        "truncated",
    }
    assert {answer for answer, *_ in found.values()} <= {"RGB", *refused}
    slow = {name: cost for name, cost in found.items() if float(cost[1]) > 2 or float(cost[2]) > 310}
    assert not slow
    assert which == "costly" or {answer for answer, *_ in found.values()} == {"RGB"}


def test_threads_share_the_memory_for_decoding(monkeypatch):
    """Of six at once as many decode as there is room for, and all of them in the end."""
    data = costly.webp_of(2_000, 2_000)  # 68 MB each
    room, most = memory.Room(140_000_000), []
    monkeypatch.setattr(memory, "room", room)
    decoded = images._decoded

    def watched(found, max_side):
        most.append(room.size - room.free)
        return decoded(found, max_side)

    monkeypatch.setattr(images, "_decoded", watched)
    with ThreadPoolExecutor(6) as pool:
        pictures = list(pool.map(lambda _: images.decode(data, max_side=64), range(6)))
    assert len(pictures) == 6 and max(most) <= 140_000_000 and room.free == room.size


def test_a_picture_that_would_take_too_much_memory_says_how_much(monkeypatch):
    monkeypatch.setattr(memory.room, "size", 300_000_000)  # a service of another test may have set it lower
    data = costly.webp_of(5_000, 5_000)
    with pytest.raises(ImageError, match=r"5000×5000 pixels would take 625 MB .* 300 are taken"):
        images.decode(data)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_any_structure_of_parts_is_a_picture_or_an_image_error(fmt, data):
    try:
        images.decode(data.draw(costly.structures(fmt)), limits=Limits(max_pixels=1_000_000), max_side=64)
    except ImageError as error:
        assert_clean(error)


# --------------------------------------------------------------------------------------------- pixels


def quadrants() -> Image.Image:
    """Red, green over blue, white: every rotation and mirror image is told apart."""
    picture = Image.new("RGB", (60, 40))
    for box, colour in {
        (0, 0, 30, 20): (255, 0, 0), (30, 0, 60, 20): (0, 255, 0),
        (0, 20, 30, 40): (0, 0, 255), (30, 20, 60, 40): (255, 255, 255),
    }.items():  # fmt: skip
        picture.paste(colour, box)
    return picture


# What was done to the picture before it was stored, for each EXIF orientation that undoes it.
STORED = {
    1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270",
}  # fmt: skip


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation_is_applied_once(fmt, orientation):
    stored = quadrants()
    if STORED[orientation]:
        stored = stored.transpose(Image.Transpose[STORED[orientation]])
    options = {
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    }.get(fmt, {})
    data = hostile.save(stored, fmt, exif=hostile.exif(orientation), **options)
    picture = images.decode(data)
    assert picture.size == (60, 40)
    assert np.abs(np.asarray(picture, int) - np.asarray(quadrants(), int)).mean() < 3
    assert images.decode(data, max_side=30).size == (30, 20)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    for fmt in ("PNG", "TIFF"):
        picture = np.asarray(images.decode(hostile.save(Image.fromarray(ramp), fmt)))
        assert np.abs(picture[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_max_side_keeps_proportions_and_never_enlarges():
    data = hostile.save(hostile.noisy((800, 200)), "JPEG")
    assert images.decode(data, max_side=400).size == (400, 100)
    assert images.decode(data, max_side=399).size == (399, 100)
    assert images.decode(data, max_side=5000).size == (800, 200)
    assert images.decode(hostile.save(hostile.plain((3000, 1)), "PNG"), max_side=100).size == (100, 1)
    with pytest.raises(ValueError, match="max_side"):
        images.decode(data, max_side=0)


def test_shrinking_while_decoding_looks_like_shrinking_afterwards():
    smooth = hostile.noisy((20, 15)).resize((800, 600), Image.Resampling.BICUBIC)
    data = hostile.save(smooth, "JPEG", quality=90)
    direct = np.asarray(images.decode(data, max_side=300), float)
    later = np.asarray(images.decode(data).resize((300, 225), Image.Resampling.LANCZOS), float)
    assert 10 * np.log10(255**2 / np.mean((direct - later) ** 2)) > 40  # decibels


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([2.0, 4.0, 7.5]))
def test_padding_makes_any_strip_acceptable(width, height, ratio):
    picture = Image.new("RGB", (min(width, 300) if height > 300 else width, height), hostile.RED)
    padded = images.pad_to_aspect(picture, ratio)
    assert max(padded.size) <= ratio * min(padded.size)
    if max(picture.size) <= ratio * min(picture.size):
        assert padded is picture
    else:
        colours = {colour: count for count, colour in padded.getcolors()}
        assert colours.keys() == {hostile.RED, hostile.WHITE}
        if max(picture.size) <= 4096:
            assert colours[hostile.RED] == picture.width * picture.height


def test_padding_a_very_long_strip_stays_small():
    padded = images.pad_to_aspect(Image.new("RGB", (1_000_000, 1)))
    assert padded.size == (4096, 1024)


def test_threads_give_what_one_thread_gives():
    datas = [data for _, data, _ in ODD if len(data) < 20_000]
    expected = [np.asarray(images.decode(data, max_side=16)).tobytes() for data in datas]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            results = pool.map(lambda data: np.asarray(images.decode(data, max_side=16)).tobytes(), datas)
            assert list(results) == expected


# ---------------------------------------------------------------------------------------------- files


def test_only_regular_files_are_read(tmp_path):
    def read(path):
        return images.read_bytes(ImageRef(path=str(path)))

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    assert code_of(lambda: read(tmp_path / "pipe")) == "not_a_file"
    assert code_of(lambda: read(tmp_path)) == "not_a_file"
    assert code_of(lambda: read("/dev/zero")) == "not_a_file"
    assert code_of(lambda: read(tmp_path / "empty")) == "empty"
    for missing in ("none.jpg", "empty/inside", "nul\0.jpg", "x" * 5000):
        assert code_of(lambda missing=missing: read(tmp_path / missing)) in ("missing_file", "unreadable")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_says_so(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(VALID[0])
    file.chmod(0)
    assert code_of(lambda: images.read_bytes(ImageRef(path=str(file)))) == "unreadable"


def test_paths_cannot_leave_the_feeds_folder(tmp_path):
    root, outside = tmp_path / "feed", tmp_path / "secret.png"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(VALID[1])
    outside.write_bytes(VALID[1])
    (root / "link.png").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    for path in ("images/a.png", "./images/../images/a.png", str(root / "images" / "a.png")):
        assert images.load(ImageRef(path=path), root=root).size == (40, 30)
        assert Path(images.resolve_path(path, root)) == root / "images" / "a.png"
    for path in ("../secret.png", str(outside), "link.png", "images/../../secret.png", "/dev/zero"):
        assert code_of(lambda path=path: images.read_bytes(ImageRef(path=path), root=root)) == "outside_root"
    for path in ("loop/a.png", "nul\0.png", "none.png"):
        code = code_of(lambda path=path: images.read_bytes(ImageRef(path=path), root=root))
        assert code in ("missing_file", "outside_root", "unreadable")
    assert images.load(ImageRef(path=str(outside))).size == (40, 30)  # no root given: trusted


def test_urls_are_off_without_a_fetcher():
    assert code_of(lambda: images.load(ImageRef(url="http://localhost/a.png"))) == "remote_off"

    class Shelf:
        def fetch(self, url, *, max_bytes):
            return VALID[1]

    assert images.load(ImageRef(url="shelf://a"), fetcher=Shelf()).size == (40, 30)
    limits = Limits(max_bytes=10)
    assert (
        code_of(lambda: images.load(ImageRef(url="shelf://a"), fetcher=Shelf(), limits=limits))
        == "too_many_bytes"
    )


def test_errors_travel_between_processes():
    error = copy.copy(ImageError("truncated", "the PNG is cut short"))  # by the same protocol as pickling
    assert (error.code, str(error)) == ("truncated", "the PNG is cut short")


# ------------------------------------------------------------------------------------- the only decoder

OTHER_DECODERS = {"cv2", "imageio", "torchvision", "skimage", "matplotlib", "decord", "av"}


def decoders(source: str) -> Iterator[int]:
    """Lines that import another decoder or call `open` of PIL's Image."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names) if {name.name.split(".")[0] for name in names} & OTHER_DECODERS:
                yield node.lineno
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in OTHER_DECODERS:
                yield node.lineno
            case ast.ImportFrom(module="PIL.Image", names=names) if "open" in {name.name for name in names}:
                yield node.lineno
            case ast.Attribute(attr="open", value=ast.Name(id="Image") | ast.Attribute(attr="Image")):
                yield node.lineno


def test_there_is_no_other_decoder_in_the_source():
    found = [f"{path}:{line}" for path in SOURCES.rglob("*.py") for line in decoders(path.read_text())]
    assert not found, "decode through moonshelf.images"


@pytest.mark.parametrize(
    "source",
    [
        "Image.open(f)",
        "PIL.Image.open(f)",
        "from PIL.Image import open",
        "import cv2",
        "from torchvision.io import x",
    ],
)
def test_the_search_for_decoders_finds_them(source):
    assert list(decoders(source)) == [1]


@pytest.mark.parametrize(
    "line", ["from PIL import Image\nImage.open('a')\n", "import PIL.Image\nPIL.Image.open('a')\n"]
)
def test_the_linter_bans_another_decoder(line):
    ruff = Path(sys.executable).parent / "ruff"
    if not ruff.exists():
        pytest.skip("ruff is not installed beside this Python")
    command = [str(ruff), "check", "--stdin-filename", "src/moonshelf/feeds/other.py", "-"]
    done = subprocess.run(command, input=line, text=True, capture_output=True, cwd=SOURCES.parent)
    assert done.returncode == 1 and "TID251" in done.stdout


def test_pillow_errors_hold_addresses_which_ours_do_not():
    """Why texts are our own: the reason for this rule, should Pillow ever change."""
    with pytest.raises(Exception, match="0x"):
        Image.open(io.BytesIO(b"no picture"))  # noqa: TID251
    with pytest.raises(ImageError, match="of no known kind"):
        images.decode(b"no picture")
