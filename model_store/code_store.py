"""Binary codes of fc7 vectors: where trained encoders are kept, and how one is run, with ONNX Runtime.

An encoder belongs to the weights that made its vectors, so it lies at `codes/<fingerprint>/<bits>/` in the home, beside
the versions and not in one: a version never changes once it is published, while codes are trained later, from vectors
that only the version itself can make, and again when a collection is another one. Any version with the same weights
uses it.

Promises: a folder is whole or absent; its file is compared with the manifest's SHA-256 before it is run.
Does not: train (model_store/training/autoencoder.py does), search.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import FEATURES
from model_store.durable import sha256_of, sync, sync_tree
from model_store.errors import ArtifactCorruptError, ArtifactFormatError, RunnerError, ShapeError

if TYPE_CHECKING:
    import onnxruntime

FORMAT: Final = 1
BITS: Final = (64, 128, 256)
MODEL_FILE: Final = "codes.onnx"
MANIFEST_FILE: Final = "manifest.json"
INPUT: Final = "fc7"
OUTPUT: Final = "code"
_AT_ONCE: Final = 1024


@dataclass(frozen=True, slots=True)
class CodesManifest:
    """What is known of an encoder. sha256: of codes.onnx; fingerprint: of the model; loss: share of the variance left.

    created: UTC, ISO 8601. training: its options.
    """

    bits: int
    fingerprint: str
    sha256: str
    created: str
    vectors: int
    loss: float
    training: dict[str, Any]
    format: int = FORMAT


class CodeStore:
    """The encoders of one home."""

    def __init__(self, home: Path) -> None:
        self._root = home / "codes"

    def folder(self, fingerprint: str, bits: int) -> Path:
        """Return where the encoder of this model with so many bits is, or would be."""
        return self._root / fingerprint / str(bits)

    def find(self, fingerprint: str, bits: int) -> BinaryEncoder | None:
        """Return the encoder, loaded; None when there is none.

        Raises ArtifactCorruptError, ArtifactFormatError, RunnerError.
        """
        folder = self.folder(fingerprint, bits)
        return BinaryEncoder.open(folder) if folder.exists() else None

    def has(self, fingerprint: str) -> bool:
        """Tell whether this model has an encoder."""
        return any(self.folder(fingerprint, count).exists() for count in BITS)

    def best(self, fingerprint: str) -> BinaryEncoder | None:
        """Return the encoder of this model with the most bits; None when there is none. Raises as `find` does."""
        bits = [count for count in BITS if self.folder(fingerprint, count).exists()]
        return self.find(fingerprint, max(bits)) if bits else None

    def publish(self, model: bytes, manifest: CodesManifest) -> Path:
        """Put an encoder in its place, instead of one that is there. Raises OSError, with the old one as it was."""
        target = self.folder(manifest.fingerprint, manifest.bits)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=".staged-"))
        try:
            (staged / MODEL_FILE).write_bytes(model)
            (staged / MANIFEST_FILE).write_text(json.dumps(asdict(manifest), indent=2))
            sync_tree(staged)
            if target.exists():
                target.rename(staged / "old")
            staged.rename(target)
            sync(target.parent)
            shutil.rmtree(target / "old", ignore_errors=True)
        except BaseException:
            if (staged / "old").exists() and not target.exists():
                (staged / "old").rename(target)
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return target


class BinaryEncoder:
    """A trained encoder: fc7 vectors in, codes out. Calls from several threads are safe."""

    def __init__(self, manifest: CodesManifest, session: onnxruntime.InferenceSession) -> None:
        """For `open`."""
        self.manifest, self._session = manifest, session
        self.bits = manifest.bits
        self.width = manifest.bits // 8

    @classmethod
    def open(cls, folder: Path) -> BinaryEncoder:
        """Load what `CodeStore.publish` wrote. Raises ArtifactCorruptError, ArtifactFormatError, RunnerError."""
        import onnxruntime  # noqa: PLC0415

        try:
            values = json.loads((folder / MANIFEST_FILE).read_bytes())
            if values["format"] != FORMAT:
                raise ArtifactFormatError(folder / MANIFEST_FILE, f"format {values['format']}, not {FORMAT}")
            manifest = CodesManifest(**values)
            found = sha256_of(folder / MODEL_FILE)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactFormatError(folder / MANIFEST_FILE, f"{error!r}: fc7 codes train makes it anew") from error
        if found != manifest.sha256:
            raise ArtifactCorruptError(folder / MODEL_FILE, manifest.sha256, found)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            content = (folder / MODEL_FILE).read_bytes()
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the seam: each of ONNX Runtime's status codes is an exception class of its own
            raise RunnerError(str(folder), str(error)) from error
        return cls(manifest, session)

    def encode(self, rows: NDArray[np.float16] | NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes of fc7 vectors, [n, 4096] -> uint8 [n, bits / 8]. Raises ShapeError, RunnerError."""
        return np.packbits(self.encode_bits(rows), axis=1, bitorder="little")

    def encode_bits(self, rows: NDArray[np.float16] | NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the codes a bit an element, [n, 4096] -> bool [n, bits]. Raises ShapeError, RunnerError."""
        if rows.ndim != 2 or rows.shape[1] != FEATURES:
            raise ShapeError("vectors", f"[n, {FEATURES}]", str(list(rows.shape)))
        bits = np.empty((len(rows), self.bits), np.bool_)
        for start in range(0, len(rows), _AT_ONCE):
            part = np.ascontiguousarray(rows[start : start + _AT_ONCE], dtype=np.float32)
            try:
                [values] = self._session.run([OUTPUT], {INPUT: part})
            except Exception as error:  # the seam, as above
                raise RunnerError(f"codes of {self.bits} bits", str(error)) from error
            bits[start : start + _AT_ONCE] = values > 0
        return bits
