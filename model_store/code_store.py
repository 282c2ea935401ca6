"""The store of trained encoders for binary codes of fc7 vectors, and running one with ONNX Runtime.

An encoder belongs to the weights that made its training vectors, so it is stored by fingerprint, in
`$FC7_HOME/codes/<fingerprint>/<bits>/`. It is not part of a version: versions never change, and encoders can be trained
later, and again when the indexed images have changed. All versions with the same weights share it.
Guarantees: a folder is either complete or absent. The file is compared with the SHA-256 in its manifest before use.
Out of scope: training (`model_store/training/autoencoder.py`) and search.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.durable import sync, sync_tree
from model_store.errors import ArtifactCorruptError, ArtifactFormatError, RunnerError, ShapeError
from model_store.manifest import FEATURES

if TYPE_CHECKING:
    import onnxruntime

FORMAT: Final = 1
BITS: Final = (64, 128, 256)
MODEL_FILE: Final = "codes.onnx"
MANIFEST_FILE: Final = "manifest.json"
INPUT: Final = "fc7"
OUTPUT: Final = "code"
_BATCH: Final = 1024


@dataclass(frozen=True, slots=True)
class CodesManifest:
    """The manifest of an encoder.

    sha256: hash of codes.onnx. fingerprint: of the model. created: UTC, ISO 8601. vectors: number of training vectors.
    loss: share of the variance that the reconstruction does not explain. training: the training options.
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
    """The encoders in one `FC7_HOME`."""

    def __init__(self, home: Path) -> None:
        self._root = home / "codes"

    def folder(self, fingerprint: str, bits: int) -> Path:
        """Return the folder of the encoder with this number of bits. It may not exist."""
        return self._root / fingerprint / str(bits)

    def find(self, fingerprint: str, bits: int) -> BinaryEncoder | None:
        """Load the encoder. Returns None if it does not exist.

        Raises ArtifactCorruptError, ArtifactFormatError, RunnerError.
        """
        folder = self.folder(fingerprint, bits)
        return BinaryEncoder.open(folder) if folder.exists() else None

    def has(self, fingerprint: str) -> bool:
        """Return whether this model has an encoder."""
        return any(self.folder(fingerprint, count).exists() for count in BITS)

    def best(self, fingerprint: str) -> BinaryEncoder | None:
        """Load the encoder of this model with the most bits, or return None. Raises the errors of `find`."""
        bits = [count for count in BITS if self.folder(fingerprint, count).exists()]
        return self.find(fingerprint, max(bits)) if bits else None

    def publish(self, model: bytes, manifest: CodesManifest) -> Path:
        """Store an encoder, replacing an existing one. Raises OSError; the existing one is unchanged then."""
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
    """A trained encoder: fc7 vectors in, codes out. Thread-safe."""

    def __init__(self, manifest: CodesManifest, session: onnxruntime.InferenceSession) -> None:
        """Use `open`; the constructor only stores its arguments."""
        self.manifest, self._session = manifest, session
        self.bits = manifest.bits
        self.width = manifest.bits // 8

    @classmethod
    def open(cls, folder: Path) -> BinaryEncoder:
        """Load the encoder in this folder. Raises ArtifactCorruptError, ArtifactFormatError, RunnerError."""
        import onnxruntime  # noqa: PLC0415

        file = folder / MANIFEST_FILE
        try:
            values = json.loads(file.read_bytes())
            if values["format"] != FORMAT:
                raise ArtifactFormatError(file, f"it has format {values['format']}, and {FORMAT} is supported")
            manifest = CodesManifest(**values)
            content = (folder / MODEL_FILE).read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactFormatError(file, f"{error!r}. Train the codes again: fc7 codes train") from error
        found = hashlib.sha256(content).hexdigest()
        if found != manifest.sha256:
            raise ArtifactCorruptError(folder / MODEL_FILE, manifest.sha256, found)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has an exception class for each status code
            raise RunnerError(str(folder), str(error)) from error
        return cls(manifest, session)

    def encode(self, rows: NDArray[np.float16] | NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the codes of fc7 vectors, 8 bits a byte: [n, 4096] -> uint8 [n, bits / 8].

        Raises ShapeError, RunnerError.
        """
        return np.packbits(self.encode_bits(rows), axis=1, bitorder="little")

    def encode_bits(self, rows: NDArray[np.float16] | NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the codes of fc7 vectors, one bit an element: [n, 4096] -> bool [n, bits].

        Raises ShapeError, RunnerError.
        """
        if rows.ndim != 2 or rows.shape[1] != FEATURES:
            raise ShapeError("vectors", f"[n, {FEATURES}]", str(list(rows.shape)))
        bits = np.empty((len(rows), self.bits), np.bool_)
        for start in range(0, len(rows), _BATCH):
            part = np.ascontiguousarray(rows[start : start + _BATCH], dtype=np.float32)
            try:
                [values] = self._session.run([OUTPUT], {INPUT: part})
            except Exception as error:  # as above
                raise RunnerError(f"codes of {self.bits} bits", str(error)) from error
            bits[start : start + _BATCH] = values > 0
        return bits
