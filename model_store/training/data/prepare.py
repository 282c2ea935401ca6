"""Prepare images once into shards (shards.py says what those are), for data sets that do not fit memory.

Promises: every image goes through `model_store.image.prepare`; an interrupted preparation goes on after its last whole
shard, and ends with the same bytes; shards.json is written last, so a folder that has it is complete; training images
lie in a fixed random order, so that each shard is a sample of all classes.
Does not: change the originals, or unpack them.
Source: the paper, section 2; the original code too trained on 256x256 JPEGs.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from model_store.durable import locked, sha256_of, sync, write_atomic
from model_store.errors import DatasetError, ImageError
from model_store.image import PREPARATION, prepare
from model_store.training.data.class_folders import in_order
from model_store.training.data.dataset import Skipped
from model_store.training.data.shards import (
    FORMAT,
    INDEX_SUFFIX,
    SHARDS_FILE,
    SKIPPED_FILE,
    Shard,
    is_sharded,
    read_index,
)
from model_store.training.data.sources import Item, Source
from model_store.training.runs.run import write_statistics
from model_store.training.statistics import Sums, channel_sums

DEFAULT_SHARD_IMAGES: Final = 1_000
DEFAULT_QUALITY: Final = 95
PROGRESS_FILE: Final = ".preparing.safetensors"
_LOCK_FILE: Final = ".preparing.lock"
_ORDER: Final = 2012  # seeds the fixed order of the training images


@dataclass(frozen=True, slots=True)
class Encoding:
    """How prepared images are stored. quality: of the JPEGs, 1 to 100; None stores PNGs, exact and much larger."""

    quality: int | None = DEFAULT_QUALITY

    def __str__(self) -> str:
        return "png" if self.quality is None else f"jpeg-{self.quality}"

    @property
    def suffix(self) -> str:
        """The files' suffix in the tars."""
        return "png" if self.quality is None else "jpg"

    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """Return the file of a picture, uint8 [256, 256, 3]."""
        file = io.BytesIO()
        if self.quality is None:
            Image.fromarray(pixels).save(file, "PNG", compress_level=4)
        else:
            # Full resolution of the colours: they are what the colour noise and conv1's colour kernels are about.
            Image.fromarray(pixels).save(file, "JPEG", quality=self.quality, subsampling=0)
        return file.getvalue()


@dataclass(slots=True)
class _State:
    """What is done: the shards of each split, what was skipped, and the sums over the training images."""

    shards: dict[str, list[Shard]]
    skipped: list[dict[str, str]] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)


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
    """Write the images of `source` as shards into `out`, or go on where it was interrupted; return whether it is done.

    shard_images: images in a shard; workers: threads. progress: called with the images done and in all.
    stop: asked after every shard. Raises DatasetError: `out` is of other images or options, a
    class has no image that can be read, the disk is full.
    """
    encoding = encoding or Encoding()
    plan = hashlib.sha256(f"{PREPARATION}\n{encoding}\n{shard_images}\n{source.digest()}".encode()).hexdigest()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / _LOCK_FILE, wait=False) as mine:
            if not mine:
                raise DatasetError(f"another process prepares shards in {out}")
            state = _read_state(out, plan, source)
            if state is None:
                return True
            done, total = 0, sum(map(len, source.splits.values()))
            with ThreadPoolExecutor(workers, "prepare") as pool:
                for split, items in source.splits.items():
                    for number, chunk in enumerate(_chunks(split, items, shard_images)):
                        if number >= len(state.shards[split]):
                            if stop():
                                return False
                            path = out / f"{split}-{number:06d}.tar"
                            _write_shard(path, number * shard_images, chunk, encoding, state=state, pool=pool)
                            _write_state(out, plan, state)
                        done += len(chunk)
                        progress(done, total)
            _finish(out, plan, source, encoding, state)
    except OSError as error:
        raise DatasetError(f"shards cannot be written to {out}: {error}. Make room and try again") from error
    return True


def _chunks(split: str, items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    order = np.random.default_rng(_ORDER).permutation(len(items)) if split == "train" else np.arange(len(items))
    for first in range(0, len(items), size):
        yield [items[at] for at in order[first : first + size]]


@dataclass(frozen=True, slots=True)
class _Prepared:
    pixels: NDArray[np.uint8]
    encoded: bytes
    original: bytes  # SHA-256
    products: NDArray[np.int64]
    totals: NDArray[np.int64]


def _write_shard(
    path: Path, first: int, chunk: Sequence[Item], encoding: Encoding, *, state: _State, pool: ThreadPoolExecutor
) -> None:
    """Write a shard and its index, of which the images count from `first` on, and add them to `state`."""
    split = path.name.partition("-")[0]

    def work(item: Item) -> _Prepared | Skipped:
        try:
            content = item.read()
            pixels = prepare(content)
        except (ImageError, OSError) as error:
            return Skipped(Path(item.name), str(error))
        return _Prepared(pixels, encoding.encode(pixels), hashlib.sha256(content).digest(), *channel_sums(pixels))

    temporary = path.with_name(f".{path.name}.tmp")
    offsets, sizes, labels, originals = [], [], [], []
    try:
        with temporary.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for place, (item, read) in enumerate(zip(chunk, in_order(pool, work, chunk), strict=True)):
                if isinstance(read, Skipped):
                    state.skipped.append({"path": f"{split}/{read.path}", "reason": read.reason})
                    continue
                key = f"{first + place:08d}"
                _add(tar, f"{key}.{encoding.suffix}", read.encoded)
                # The file's end is where the next header goes: its content was padded to whole blocks.
                padded = -(-len(read.encoded) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                offsets.append(tar.offset - padded)
                _add(tar, f"{key}.cls", str(item.label).encode())
                sizes.append(len(read.encoded))
                labels.append(item.label)
                originals.append(np.frombuffer(read.original, np.uint8))
                if split == "train":
                    state.sums.add(read.pixels, read.products, read.totals)
        index = {"offsets": offsets, "sizes": sizes, "labels": labels}
        arrays: dict[str, NDArray[Any]] = {key: np.array(values, np.int64) for key, values in index.items()}
        arrays["originals"] = np.array(originals, np.uint8).reshape(-1, 32)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    write_atomic(path.with_suffix(INDEX_SUFFIX), save(arrays))
    digests = sha256_of(path), sha256_of(path.with_suffix(INDEX_SUFFIX))
    state.shards[split].append(Shard(path.name, len(labels), path.stat().st_size, *digests))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its time is 0, so that the same images give the same bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _read_state(out: Path, plan: str, source: Source) -> _State | None:
    """Return what is done already; None: all. Raises DatasetError when it was begun with other images or options."""
    file = out / PROGRESS_FILE
    other = DatasetError(
        f"{out} was prepared from other images, or with other options: take another folder, or remove this one"
    )
    if is_sharded(out):
        if json.loads((out / SHARDS_FILE).read_text(encoding="utf-8")).get("plan") != plan:
            raise other
        return None
    state = _State({split: [] for split in source.splits})
    if not file.exists():
        return state
    try:
        with safe_open(file, framework="numpy") as opened:
            values = json.loads(opened.metadata()["state"])
            if values["plan"] != plan:
                raise other
            state.shards = {split: [Shard(**shard) for shard in values["shards"][split]] for split in source.splits}
            state.skipped = values["skipped"]
            state.sums = Sums(values["images"], *(opened.get_tensor(key) for key in ("image", "products", "totals")))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{file} is broken ({error!r}): remove {out} and begin again") from error
    return state


def _write_state(out: Path, plan: str, state: _State) -> None:
    shards = {split: [asdict(shard) for shard in done] for split, done in state.shards.items()}
    values = {"plan": plan, "shards": shards, "skipped": state.skipped, "images": state.sums.images}
    arrays = {"image": state.sums.image, "products": state.sums.products, "totals": state.sums.totals}
    write_atomic(out / PROGRESS_FILE, save(arrays, {"state": json.dumps(values)}))


def _finish(out: Path, plan: str, source: Source, encoding: Encoding, state: _State) -> None:
    digest = hashlib.sha256(f"preparation {PREPARATION}\n".encode())
    digest.update(
        json.dumps([source.classes, [asdict(s) for shards in state.shards.values() for s in shards]]).encode()
    )
    for split, shards in state.shards.items():
        present = {label for shard in shards for label in read_index(out / shard.file)["labels"].tolist()}
        for label, name in enumerate(source.classes):
            if label not in present and split != "test":
                raise DatasetError(f"none of the images of {name!r} in {split} of {source.root} can be read")
    write_statistics(out, state.sums.statistics())
    skipped = [{"path": str(item.path), "reason": item.reason} for item in source.ignored] + state.skipped
    write_atomic(out / SKIPPED_FILE, json.dumps(skipped, indent=2, ensure_ascii=False).encode())
    values = {
        "format": FORMAT,
        "preparation": PREPARATION,
        "encoding": str(encoding),
        "source": f"{source.kind} in {source.root.resolve()}",
        "plan": plan,
        "hash": digest.hexdigest(),
        "classes": source.classes,
        "duplicates": _duplicates(out, state),
        "splits": {split: [asdict(shard) for shard in shards] for split, shards in state.shards.items()},
    }
    write_atomic(out / SHARDS_FILE, json.dumps(values, indent=1, ensure_ascii=False).encode())
    (out / PROGRESS_FILE).unlink(missing_ok=True)


def _duplicates(out: Path, state: _State) -> list[tuple[str, str]]:
    """Return (training, validation) images of the same original bytes, as "train-000000.tar:12"."""
    seen: dict[bytes, str] = {}
    for shard in state.shards["val"]:
        for place, original in enumerate(read_index(out / shard.file)["originals"]):
            seen.setdefault(original.tobytes(), f"{shard.file}:{place}")
    return [
        (f"{shard.file}:{place}", seen[original.tobytes()])
        for shard in state.shards["train"]
        for place, original in enumerate(read_index(out / shard.file)["originals"])
        if original.tobytes() in seen
    ]
