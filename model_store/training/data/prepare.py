"""Prepare images once and write them as shards (see shards.py), for data sets that do not fit in memory.

Guarantees: every image is prepared by `model_store.image.prepare`. An interrupted preparation resumes after its last
complete shard and produces the same bytes. shards.json is written last, so a folder that has it is complete. Training
images are in a fixed random order, so that each shard is a sample of all classes.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from model_store.decoder.decoder import Decoder
from model_store.decoder.limits import DecodeLimits
from model_store.durable import atomic_file, locked, sha256_of, write_atomic
from model_store.errors import DatasetError
from model_store.image import PREPARATION
from model_store.image_files import Skipped, escape_name
from model_store.prefetch import prefetch
from model_store.training.data.image_file import ImageFile, LoadedImage, Source, load_image, skipped_of, write_skipped
from model_store.training.data.reader import PREFETCH
from model_store.training.data.shards import FORMAT, INDEX_SUFFIX, SHARDS_FILE, Shard, is_sharded, read_index
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


def prepare_shards(
    source: Source,
    out: Path,
    *,
    encoding: Encoding | None = None,
    shard_images: int = DEFAULT_SHARD_IMAGES,
    workers: int,
    limits: DecodeLimits | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Write the images of `source` as shards into `out`, or resume doing so. Returns whether all shards are written.

    shard_images: images per shard. workers: threads. limits: of decoding. progress: called with the images done and the
    total. stop: checked before every shard. Raises DatasetError if `out` was prepared from other images or with other
    options, if a class has no readable image, or if the shards cannot be written.
    """
    encoding = encoding or Encoding()
    plan = hashlib.sha256(f"{PREPARATION}\n{encoding}\n{shard_images}\n{source.digest()}".encode()).hexdigest()
    preparation = _Preparation(source, out, encoding, plan, limits)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out / _LOCK_FILE, wait=False) as acquired:
            if not acquired:
                raise DatasetError(f"Another process is already preparing shards in {out}.")
            if preparation.load_progress():
                return True
            for leftover in out.glob(".*.tar.*"):  # of a shard that was being written when the process was killed
                leftover.unlink()
            done, total = 0, sum(map(len, source.splits.values()))
            with ThreadPoolExecutor(workers, "prepare") as pool, preparation.decoder:
                for split, images in source.splits.items():
                    for number, chunk in enumerate(_chunks(split, images, shard_images)):
                        if number >= len(preparation.shards[split]):
                            if stop():
                                return False
                            preparation.write_shard(split, number, chunk, number * shard_images, pool)
                            preparation.save_progress()
                        done += len(chunk)
                        progress(done, total)
            preparation.finish()
    except OSError as error:
        raise DatasetError(f"Cannot write shards to {out}: {error}. Free some disk space and try again.") from error
    return True


def _chunks(split: str, images: Sequence[ImageFile], size: int) -> Iterator[list[ImageFile]]:
    count = len(images)
    order = np.random.default_rng(_ORDER_SEED).permutation(count) if split == "train" else np.arange(count)
    for first in range(0, count, size):
        yield [images[position] for position in order[first : first + size]]


class _Preparation:
    """Shards that are being prepared: those of each split so far, skipped files, and sums over the training images.

    plan: a hash that identifies the images and options.
    """

    def __init__(self, source: Source, out: Path, encoding: Encoding, plan: str, limits: DecodeLimits | None) -> None:
        self._source, self._out, self._encoding, self._plan = source, out, encoding, plan
        self._index_of = source.index_of()
        self.decoder = Decoder(limits)
        self.shards: dict[str, list[Shard]] = {split: [] for split in source.splits}
        self._skipped: list[Skipped] = []
        self._sums = Sums()

    def load_progress(self) -> bool:
        """Load what is finished, and return whether everything is. Raises DatasetError if the plan is another one."""
        file = self._out / PROGRESS_FILE
        different = DatasetError(
            f"{self._out} was prepared from other images, with other options, or by another version of fc7. Choose "
            "another folder, or remove this one."
        )
        if is_sharded(self._out):
            if json.loads((self._out / SHARDS_FILE).read_text(encoding="utf-8")).get("plan") != self._plan:
                raise different
            return True
        if not file.exists():
            return False
        try:
            with safe_open(file, framework="numpy") as opened:
                values = json.loads(opened.metadata()["state"])
                if values["plan"] != self._plan:
                    raise different
                self.shards = {
                    split: [Shard(**shard) for shard in values["shards"][split]] for split in self._source.splits
                }
                self._skipped = [skipped_of(item) for item in values["skipped"]]
                sums = (opened.get_tensor(key) for key in ("image", "products", "totals"))
                self._sums = Sums(values["images"], *sums)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{file} is broken ({error!r}). Remove {self._out} and start again.") from error
        return False

    def save_progress(self) -> None:
        """Write what is finished, for `load_progress`."""
        skipped = [item.to_dict() for item in self._skipped]
        values = {"plan": self._plan, "shards": self._splits(), "skipped": skipped, "images": self._sums.images}
        arrays = {"image": self._sums.image, "products": self._sums.products, "totals": self._sums.totals}
        write_atomic(self._out / PROGRESS_FILE, save(arrays, {"state": json.dumps(values)}))

    def write_shard(
        self, split: str, number: int, chunk: Sequence[ImageFile], first: int, pool: ThreadPoolExecutor
    ) -> None:
        """Write a shard and its index. first: the number of its first image in the split."""
        path = self._out / f"{split}-{number:06d}.tar"
        index: defaultdict[str, list[int]] = defaultdict(list)
        originals = []
        with (
            atomic_file(path) as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            prefetch(self._load, chunk, pool, PREFETCH) as results,
        ):
            for position, (image, future) in enumerate(results, start=first):
                loaded, encoded = future.result()
                if isinstance(loaded, Skipped):
                    self._skipped.append(Skipped(f"{split}/{image.name}", loaded.reason, loaded.kind))
                    continue
                label = self._index_of[image.label]
                index["offsets"].append(_add(tar, f"{position:08d}.{self._encoding.suffix}", encoded))
                index["sizes"].append(len(encoded))
                index["labels"].append(label)
                _add(tar, f"{position:08d}.cls", str(label).encode())
                originals.append(np.frombuffer(bytes.fromhex(loaded.sha256), np.uint8))
                if split == "train" and loaded.sums is not None:
                    self._sums.add(loaded.pixels, loaded.sums)
        arrays: dict[str, NDArray[Any]] = {
            key: np.array(index[key], np.int64) for key in ("offsets", "sizes", "labels")
        }
        arrays["originals"] = np.array(originals, np.uint8).reshape(-1, 32)
        index_path = path.with_suffix(INDEX_SUFFIX)
        write_atomic(index_path, save(arrays))
        shard = Shard(path.name, len(originals), path.stat().st_size, sha256_of(path), sha256_of(index_path))
        self.shards[split].append(shard)

    def _load(self, image: ImageFile) -> tuple[LoadedImage | Skipped, bytes]:
        loaded = load_image(image, self.decoder, with_sums=True)
        return loaded, b"" if isinstance(loaded, Skipped) else self._encoding.encode(loaded.pixels)

    def finish(self) -> None:
        """Write the files that describe all shards, shards.json last. Raises DatasetError if a class has no image."""
        source, splits = self._source, self._splits()
        digest = hashlib.sha256(f"preparation {PREPARATION}\n".encode())
        digest.update(json.dumps([source.classes, [shard for shards in splits.values() for shard in shards]]).encode())
        for split, shards in self.shards.items():
            present = {label for shard in shards for label in read_index(self._out / shard.file)["labels"].tolist()}
            listed = source.counts(split)
            for index, label in enumerate(source.classes):
                if index not in present and label in listed and split != "test":
                    raise DatasetError(
                        f"None of the images of class {label!r} in {split} of {source.root} can be read."
                    )
        write_statistics(self._out, self._sums.statistics())
        write_skipped(self._out, [*source.ignored, *self._skipped])
        val = dict(reversed([*self._originals("val")]))  # the first of several images with the same original wins
        values = {
            "format": FORMAT,
            "preparation": PREPARATION,
            "encoding": str(self._encoding),
            "source": escape_name(f"{source.kind} in {source.root.resolve()}"),
            "plan": self._plan,
            "hash": digest.hexdigest(),
            "classes": source.classes,
            "duplicates": [(name, val[original]) for original, name in self._originals("train") if original in val],
            "splits": splits,
        }
        write_atomic(self._out / SHARDS_FILE, json.dumps(values, indent=1, ensure_ascii=False).encode())
        (self._out / PROGRESS_FILE).unlink(missing_ok=True)

    def _splits(self) -> dict[str, list[dict[str, Any]]]:
        """Return the shards of each split as JSON types."""
        return {split: [asdict(shard) for shard in shards] for split, shards in self.shards.items()}

    def _originals(self, split: str) -> Iterator[tuple[bytes, str]]:
        """Yield the SHA-256 of the original and the name, such as "train-000000.tar:12", of each image of a split."""
        for shard in self.shards[split]:
            for number, sha256 in enumerate(read_index(self._out / shard.file)["originals"]):
                yield sha256.tobytes(), f"{shard.file}:{number}"


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file to the tar and return the offset of its content."""
    member = tarfile.TarInfo(name)  # its time is 0, so that the same images give the same bytes
    member.size = len(content)
    offset = tar.offset + tarfile.BLOCKSIZE  # after the header, which is one block in this format
    tar.addfile(member, io.BytesIO(content))
    return offset
