"""The estimated cost of decoding: honest pictures are far below the limits, hostile ones are not."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.decoder.decoder import is_ordinary
from model_store.decoder.limits import DecodeLimits
from model_store.decoding.cost import estimate
from model_store.errors import DecodeMemoryError, DecodeTimeError, ImageError, ImageTooLargeError
from tests.support import costly_images as costly
from tests.support.pictures import animated_gif, bomb, encoded, jpeg, scene

HOSTILE: dict[str, tuple[Callable[[], bytes], type[ImageError]]] = {
    "jpeg scans": (lambda: costly.jpeg_with_scans(6000, 6000, 300), DecodeTimeError),
    "jpeg scans of a small picture": (lambda: costly.jpeg_with_scans(1000, 1000, 12_000), DecodeTimeError),
    "jpeg segments": (lambda: costly.jpeg_with_segments(1_000_000), DecodeTimeError),
    "jpeg junk": (lambda: costly.jpeg_with_junk(12_000_000), DecodeTimeError),
    "bmp rle": (lambda: costly.rle_bmp(25_000_000, 1), DecodeTimeError),
    "bmp rle without pixels": (lambda: costly.rle_bmp_of_steps(4_000_000), DecodeTimeError),
    "png chunks": (lambda: costly.png(32, 32, chunks=1_000_000), DecodeTimeError),
    "png bomb": (bomb, ImageTooLargeError),
    "gif extensions": (lambda: costly.gif_with_extensions(3_000_000), DecodeMemoryError),
    "tiff tile": (lambda: costly.tiff(100, 100, tile=(8192, 8192)), ImageTooLargeError),
    "tiff strip": (lambda: costly.tiff(6000, 6000), DecodeMemoryError),
    "tiff strips": (lambda: costly.tiff(8, 200_000, strips=200_000), DecodeTimeError),
    "bigtiff": (lambda: costly.tiff(6000, 6000, big=True), DecodeMemoryError),
    "webp": (lambda: costly.flat("WEBP", 4500, 4500), DecodeMemoryError),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_expensive_file_is_refused_from_its_headers(name: str) -> None:
    make, error = HOSTILE[name]
    data = make()
    started = time.process_time()
    cost = estimate(data)
    assert time.process_time() - started < 0.3
    with pytest.raises(error, match="limit"):
        DecodeLimits().check(cost)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(0, 4000, 3000),
        encoded(scene(0, 2000, 1500), "JPEG", progressive=True),
        encoded(scene(0, 1200, 800), "PNG"),
        encoded(scene(0, 800, 600).convert("P"), "GIF"),
        encoded(scene(0, 640, 480), "WEBP"),
        encoded(scene(0, 640, 480), "BMP"),
        animated_gif(),
    ],
    ids=["jpeg", "progressive", "png", "gif", "webp", "bmp", "animation"],
)
def test_an_ordinary_picture_is_decoded_in_a_thread(data: bytes) -> None:
    assert is_ordinary(estimate(data))


def test_large_honest_pictures_are_accepted() -> None:
    for data in (
        costly.flat("JPEG", 5000, 4000),
        costly.png(8000, 4000),
        costly.flat("WEBP", 4000, 3000),
        costly.flat("AVIF", 4000, 3000),
        costly.rle_bmp(2000, 1500),
    ):
        DecodeLimits().check(estimate(data))


@pytest.mark.parametrize("size", [12, 20, 40, 100, 400])
def test_truncated_headers_are_unpredictable_not_an_error(size: int) -> None:
    files = [jpeg(), encoded(scene(), "PNG"), encoded(scene(), "TIFF"), encoded(scene(), "WEBP"), animated_gif()]
    for data in [*files, encoded(scene(), "BMP"), encoded(scene(), "AVIF")]:
        assert estimate(data[:size]).bytes < 1_000_000_000


def test_scans_behind_an_end_marker_in_a_comment_are_counted() -> None:
    data = costly.jpeg_with_scans(2000, 2000, 20)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    hidden = data[:second] + b"\xff\xfe\x00\x06\xff\xd9\xff\xd9" + data[second:]
    assert estimate(hidden).seconds == pytest.approx(estimate(data).seconds, rel=0.01)


def test_a_directory_loop_and_a_huge_directory_end() -> None:
    loop = bytearray(costly.tiff(100, 100))
    loop[-4:] = (8).to_bytes(4, "little")
    assert estimate(bytes(loop)).pixels == 10_000
    many = b"II*\0\x08\0\0\0\xff\xff" + b"\x00\x01\x04\x00\xff\xff\xff\xff\0\0\0\0" * 65535
    assert estimate(many).seconds > 0


_PROGRAM = """
import json, sys, time
from model_store.decoding.cost import estimate
from model_store.errors import ImageError
from model_store.image import inspect_and_prepare
from tests.support.pictures import jpeg

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

for path in sys.argv[1:]:
    data = open(path, "rb").read()
    inspect_and_prepare(jpeg())
    cost = estimate(data)
    open("/proc/self/clear_refs", "w").write("5")
    before, started = peak(), time.process_time()
    try:
        inspect_and_prepare(data)
    except ImageError:
        pass
    print(json.dumps([cost.seconds, time.process_time() - started, cost.bytes, peak() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is reset with Linux' clear_refs")
def test_estimates_are_not_below_what_decoding_takes(tmp_path: Path) -> None:
    files = [
        costly.jpeg_with_scans(1600, 1600, 20),
        costly.png(1600, 1600),
        costly.png(1600, 1600, depth=16, color=0),
        costly.png(1600, 1600, interlaced=True, color=6),
        costly.tiff(1600, 1600),
        costly.tiff(1600, 1600, samples=1, bits=32, floats=True),
        costly.tiff(100, 100, tile=(1600, 1600)),
        costly.flat("GIF", 1600, 1600),
        costly.flat("WEBP", 2000, 2000),
        costly.noisy("JPEG", 1500, 1500, progressive=True, subsampling=0),
    ]
    paths = [tmp_path / str(number) for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    output = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *map(str, paths)], check=True, capture_output=True, text=True
    ).stdout
    results = [json.loads(line) for line in output.splitlines()]
    assert len(results) == len(files)
    for number, (seconds, took, size, used) in enumerate(results):
        assert took < 5 * seconds + 0.05, number  # other processes use the same cores, and slow these down
        assert used < 1.15 * size + 8_000_000, number
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 1_000_000_000
