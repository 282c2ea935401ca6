"""Prepare images once and write them as shards (see shards.py), for data sets that do not fit in memory.

Guarantees: every image is prepared by `model_store.image.prepare`. An interrupted preparation resumes after its last
complete shard and produces the same bytes. shards.json is written last, so a folder that has it is complete. Training
images are in a fixed random order, so that each shard is a sample of all classes.
Out of scope: changing or unpacking the originals.
References: the paper, section 2. The original code also trained on 256x256 JPEGs.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from model_store.durable import atomic_file, locked, sha256_of, write_atomic
from model_store.errors import DatasetError
from model_store.image import PREPARATION
from model_store.prefetch import prefetch
from model_store.training.data.class_folders import PREFETCH
from model_store.training.data.image_file import ImageFile, LoadedImage, Skipped, load_image, write_skipped
from model_store.training.data.shards import FORMAT, INDEX_SUFFIX, SHARDS_FILE, Shard, is_sharded, read_index
from model_store.training.data.sources import Source
from model_store.training.runs.run import write_statistics
from model_store.training.statistics import Sums

DEFAULT_SHARD_IMAGES: Final = 1_000
DEFAULT_QUALITY: Final = 95
PROGRESS_FILE: Final = ".preparing.safetensors"
_LOCK_FILE: Final = ".preparing.lock"
_ORDER_SEED: Final = 2012  # of the fixed order of the training images


@dataclass(frozen=True, slots=True)
class Encoding:
    """How prepared images are stored: JPEGs of a quality from 1 to 100, or PNGs (None), which are exact but larger."""

    quality: int | None = DEFAULT_QUALITY

    def __str__(self) -> str:
        return "png" if self.quality is None else f"jpeg-{self.quality}"

    @property
    def suffix(self) -> str:
        """The suffix of the images in the tars."""
        return "png" if self.quality is None else "jpg"

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """Encode an image, uint8 [256, 256, 3]."""
        file = io.BytesIO()
        if self.quality is None:
            Image.fromarray(pixels).save(file, "PNG", compress_level=4)
        else:
            # No chroma subsampling: the color noise and the color kernels of conv1 depend on exact colors.
            Image.fromarray(pixels).save(file, "JPEG", quality=self.quality, subsampling=0)
        return file.getvalue()


@dataclass(slots=True)
class _State:
    """The finished part of a preparation: shards of each split, skipped files, and sums over the training images."""

    shards: dict[str, list[Shard]]
    skipped: list[Skipped] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)

    def shards_to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the shards of each split as JSON types."""
        return {split: [asdict(shard) for shard in shards] for split, shards in self.shards.items()}


def prepare_shards(
    source: Source,
    out: Path,
    *,
    encoding: Encoding | None = None,
    shard_images: int = DEFAULT_SHARD_IMAGES,
    workers: int,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Write the images of `source` as shards into `out`, or resume doing so. Returns whether all shards are written.

    shard_images: images per shard. workers: threads. progress: called with the images done and the total.
    stop: checked before every shard. Raises DatasetError if `out` was prepared from other images or with other options,
    if a class has no readable image, or if the shards cannot be written.
    """
    encoding = encoding or Encoding()
    plan = hashlib.sha256(f"{PREPARATION}\n{encoding}\n{shard_images}\n{source.digest()}".encode()).hexdigest()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / _LOCK_FILE, wait=False) as acquired:
            if not acquired:
                raise DatasetError(f"Another process is already preparing shards in {out}.")
            state = _read_state(out, plan, source)
            if state is None:
                return True
            for leftover in out.glob(".*.tar.*"):  # of a shard that was being written when the process was killed
                leftover.unlink()
            done, total = 0, sum(map(len, source.splits.values()))
            with ThreadPoolExecutor(workers, "prepare") as pool:
                writer = _ShardWriter(out, source, encoding, state, pool)
                for split, images in source.splits.items():
                    for number, chunk in enumerate(_chunks(split, images, shard_images)):
                        if number >= len(state.shards[split]):
                            if stop():
                                return False
                            writer.write(split, number, chunk, first=number * shard_images)
                            _write_state(out, plan, state)
                        done += len(chunk)
                        progress(done, total)
            _finish(out, plan, source, encoding, state)
    except OSError as error:
        raise DatasetError(f"Cannot write shards to {out}: {error}. Free some disk space and try again.") from error
    return True


def _chunks(split: str, images: Sequence[ImageFile], size: int) -> Iterator[list[ImageFile]]:
    count = len(images)
    order = np.random.default_rng(_ORDER_SEED).permutation(count) if split == "train" else np.arange(count)
    for first in range(0, count, size):
        yield [images[position] for position in order[first : first + size]]


class _ShardWriter:
    """Writes shards and their indexes, and adds them to the state."""

    def __init__(self, out: Path, source: Source, encoding: Encoding, state: _State, pool: ThreadPoolExecutor) -> None:
        self._out, self._encoding, self._state, self._pool = out, encoding, state, pool
        self._index_of = source.index_of()

    def write(self, split: str, number: int, chunk: Sequence[ImageFile], first: int) -> None:
        """Write a shard. first: the number of its first image in the split."""
        path = self._out / f"{split}-{number:06d}.tar"
        index: defaultdict[str, list[int]] = defaultdict(list)
        originals = []
        with (
            atomic_file(path) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            prefetch(self._load, chunk, self._pool, PREFETCH) as results,
        ):
            for position, (image, future) in enumerate(results, start=first):
                loaded, encoded = future.result()
                if isinstance(loaded, Skipped):
                    self._state.skipped.append(Skipped(Path(split) / image.name, loaded.reason))
                    continue
                label = self._index_of[image.label]
                index["offsets"].append(_add(tar, f"{position:08d}.{self._encoding.suffix}", encoded))
                index["sizes"].append(len(encoded))
                index["labels"].append(label)
                _add(tar, f"{position:08d}.cls", str(label).encode())
                originals.append(np.frombuffer(bytes.fromhex(loaded.sha256), np.uint8))
                if split == "train" and loaded.sums is not None:
                    self._state.sums.add(loaded.pixels, loaded.sums)
        arrays: dict[str, NDArray[Any]] = {
            key: np.array(index[key], np.int64) for key in ("offsets", "sizes", "labels")
        }
        arrays["originals"] = np.array(originals, np.uint8).reshape(-1, 32)
        index_path = path.with_suffix(INDEX_SUFFIX)
        write_atomic(index_path, save(arrays))
        shard = Shard(path.name, len(originals), path.stat().st_size, sha256_of(path), sha256_of(index_path))
        self._state.shards[split].append(shard)

    def _load(self, image: ImageFile) -> tuple[LoadedImage | Skipped, bytes]:
        loaded = load_image(image, with_sums=True)
        return loaded, b"" if isinstance(loaded, Skipped) else self._encoding.encode(loaded.pixels)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file to the tar and return the offset of its content."""
    member = tarfile.TarInfo(name)  # its time is 0, so that the same images give the same bytes
    member.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE  # after the header, which is one block in this format
    tar.addfile(member, io.BytesIO(content))
    return offset


def _read_state(out: Path, plan: str, source: Source) -> _State | None:
    """Return the finished part, or None if everything is finished. Raises DatasetError if the plan is a different one.

    plan: identifies the images and options.
    """
    file = out / PROGRESS_FILE
    different = DatasetError(
        f"{out} was prepared from other images, or with other options. Choose another folder, or remove this one."
    )
    if is_sharded(out):
        if json.loads((out / SHARDS_FILE).read_text(encoding="utf-8")).get("plan") != plan:
            raise different
        return None
    state = _State({split: [] for split in source.splits})
    if not file.exists():
        return state
    try:
        with safe_open(file, framework="numpy") as opened:
            values = json.loads(opened.metadata()["state"])
            if values["plan"] != plan:
                raise different
            state.shards = {split: [Shard(**shard) for shard in values["shards"][split]] for split in source.splits}
            state.skipped = [Skipped(Path(item["path"]), item["reason"]) for item in values["skipped"]]
            state.sums = Sums(values["images"], *(opened.get_tensor(key) for key in ("image", "products", "totals")))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{file} is broken ({error!r}). Remove {out} and start again.") from error
    return state


def _write_state(out: Path, plan: str, state: _State) -> None:
    skipped = [item.to_dict() for item in state.skipped]
    values = {"plan": plan, "shards": state.shards_to_dict(), "skipped": skipped, "images": state.sums.images}
    arrays = {"image": state.sums.image, "products": state.sums.products, "totals": state.sums.totals}
    write_atomic(out / PROGRESS_FILE, save(arrays, {"state": json.dumps(values)}))


def _finish(out: Path, plan: str, source: Source, encoding: Encoding, state: _State) -> None:
    """Write the files that describe all shards, shards.json last."""
    splits = state.shards_to_dict()
    digest = hashlib.sha256(f"preparation {PREPARATION}\n".encode())
    digest.update(json.dumps([source.classes, [shard for shards in splits.values() for shard in shards]]).encode())
    for split, shards in state.shards.items():
        present = {label for shard in shards for label in read_index(out / shard.file)["labels"].tolist()}
        for index, label in enumerate(source.classes):
            if index not in present and split != "test":
                raise DatasetError(f"None of the images of class {label!r} in {split} of {source.root} can be read.")
    write_statistics(out, state.sums.statistics())
    write_skipped(out, [*source.ignored, *state.skipped])
    values = {
        "format": FORMAT,
        "preparation": PREPARATION,
        "encoding": str(encoding),
        "source": f"{source.kind} in {source.root.resolve()}",
        "plan": plan,
        "hash": digest.hexdigest(),
        "classes": source.classes,
        "duplicates": _duplicates(out, state),
        "splits": splits,
    }
    write_atomic(out / SHARDS_FILE, json.dumps(values, indent=1, ensure_ascii=False).encode())
    (out / PROGRESS_FILE).unlink(missing_ok=True)


def _duplicates(out: Path, state: _State) -> list[tuple[str, str]]:
    """Return (training image, validation image) pairs with the same original bytes, such as "train-000000.tar:12"."""

    def originals(split: str) -> Iterator[tuple[bytes, str]]:
        for shard in state.shards[split]:
            for number, sha256 in enumerate(read_index(out / shard.file)["originals"]):
                yield sha256.tobytes(), f"{shard.file}:{number}"

    val: dict[bytes, str] = {}
    for sha256, name in originals("val"):
        val.setdefault(sha256, name)
    return [(name, val[sha256]) for sha256, name in originals("train") if sha256 in val]
