"""Binary codes: training the autoencoder, publishing it, search with codes, and the commands."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from index.errors import ModeUnavailableError
from index.filters import parse_where
from index.local.index import LocalImageIndex
from index.records import IndexOptions
from index.search.code_quality import EvaluationSet, hamming_search, measure_code
from model_store.code_store import BinaryEncoder, CodesManifest, CodeStore
from model_store.errors import ArtifactCorruptError, ArtifactFormatError, ShapeError
from model_store.training.autoencoder import CodeOptions, TrainedCodes, export_codes, train_codes
from model_store.training.errors import NonFiniteLossError
from service.cli.main import app
from tests.index.helpers import MODEL, activations, image, open_index, vector
from tests.index.local.test_code_builder import images, wait_until
from tests.support import pictures
from tests.support.tiny_model import publish_tiny_model

FINGERPRINT = MODEL["fingerprint"]


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float16]:
    return activations(600)


@pytest.fixture(scope="module")
def trained(rows: NDArray[np.float16]) -> TrainedCodes:
    return train_codes(rows, CodeOptions(64, epochs=8, batch_size=64))


def publish(home: Path, trained: TrainedCodes, rows: NDArray[np.float16]) -> Path:
    content = export_codes(trained.net, rows)
    manifest = CodesManifest(64, FINGERPRINT, sha256(content).hexdigest(), "2026-01-01", len(rows), trained.loss, {})
    return CodeStore(home).publish(content, manifest)


def test_training_reconstructs_part_of_the_variance(rows: NDArray[np.float16], trained: TrainedCodes) -> None:
    steps: list[tuple[int, int, float]] = []
    short = train_codes(rows, CodeOptions(64, epochs=1, batch_size=64), lambda *step: steps.append(step))
    assert [step for step, _, _ in steps] == list(range(1, 10))
    assert trained.loss < short.loss
    assert trained.loss < 0.9
    bits = trained.net.bits(rows.astype(np.float32))
    assert bits.shape == (600, 64)
    assert len(np.unique(bits, axis=0)) > 100, "different rows have different codes"


def test_the_same_seed_gives_the_same_codes(rows: NDArray[np.float16]) -> None:
    one, other = (train_codes(rows[:128], CodeOptions(64, epochs=1, batch_size=64, seed=3)).net for _ in range(2))
    assert np.array_equal(one.bits(rows[:50].astype(np.float32)), other.bits(rows[:50].astype(np.float32)))


@pytest.mark.slow
def test_the_neighbor_term_finds_more_neighbors_than_reconstruction_alone(rows: NDArray[np.float16]) -> None:
    floats = rows.astype(np.float32)
    evaluation = EvaluationSet(floats, None, np.arange(0, 600, 5))
    exact = evaluation.exact()
    recalls = []
    for options in (CodeOptions.of_plain_form(64, epochs=5), CodeOptions(64, epochs=5)):
        found = []
        for seed in (0, 1):  # the recall of one seed depends on the CPU's order of float32 sums
            net = train_codes(rows, replace(options, batch_size=100, learning_rate=2e-3, seed=seed)).net
            search = hamming_search(net.bits(floats), net.bits)
            found.append(measure_code("", 8, search, evaluation, exact).recall)
            used = net.bits(floats).mean(axis=0)
        recalls.append(np.mean(found))
    assert recalls[1] > recalls[0] + 0.02
    assert ((used > 0.1) & (used < 0.9)).all(), "no bit is nearly constant"


def test_non_finite_vectors_are_rejected(rows: NDArray[np.float16]) -> None:
    bad = rows[:64].astype(np.float32)
    bad[3, 5] = np.nan
    with pytest.raises(NonFiniteLossError):
        train_codes(bad, CodeOptions(64, epochs=1, batch_size=64))


def test_a_published_encoder_gives_the_bits_of_the_trained_net(
    rows: NDArray[np.float16], trained: TrainedCodes, tmp_path: Path
) -> None:
    store = CodeStore(tmp_path)
    assert store.best(FINGERPRINT) is None
    folder = publish(tmp_path, trained, rows)
    assert sorted(path.name for path in folder.iterdir()) == ["codes.onnx", "manifest.json"]
    publish(tmp_path, trained, rows)  # replaces the first one
    assert [path.name for path in folder.parent.iterdir()] == ["64"]
    encoder = store.best(FINGERPRINT)
    assert encoder is not None
    assert (encoder.bits, encoder.width) == (64, 8)
    wanted = trained.net.bits(rows.astype(np.float32))
    assert np.mean(encoder.encode_bits(rows) == wanted) > 0.9999
    assert np.array_equal(
        np.unpackbits(encoder.encode(rows), axis=1, bitorder="little").astype(bool), encoder.encode_bits(rows)
    )
    with pytest.raises(ShapeError):
        encoder.encode(rows[:, :100])


def test_a_damaged_encoder_is_rejected(rows: NDArray[np.float16], trained: TrainedCodes, tmp_path: Path) -> None:
    folder = publish(tmp_path, trained, rows)
    content = bytearray((folder / "codes.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "codes.onnx").write_bytes(content)
    with pytest.raises(ArtifactCorruptError):
        BinaryEncoder.open(folder)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactFormatError, match="fc7 codes train"):
        BinaryEncoder.open(folder)


def test_mode_codes_ranks_by_differing_bits_through_adds_deletes_and_filters(
    rows: NDArray[np.float16], trained: TrainedCodes, tmp_path: Path
) -> None:
    publish(tmp_path, trained, rows)
    bits = trained.net.bits(rows.astype(np.float32))
    with open_index(tmp_path) as index:
        index.add_many(images(rows[:300]))
        with pytest.raises(ModeUnavailableError, match="being computed"):
            index.mode("codes")

        def ready() -> bool:
            try:
                return index.mode("codes") == "codes"
            except ModeUnavailableError:
                return False

        wait_until(ready)
        assert index.mode() == "exact", "codes are used only if a request asks for them"
        index.add_many(images(rows[300:500], start=300))
        index.delete("i00007")
        query = rows[7:8].astype(np.float32)
        distances = (bits[:500] != bits[7]).sum(axis=1)
        found = index.search(query, 20, mode="codes")[0]
        assert "i00007" not in [near.key for near in found]
        assert [near.distance for near in found] == sorted(np.delete(distances, 7))[:20]
        for near in found:
            assert near.distance == distances[int(near.key[1:])]
        odd = index.similar("i00301", 300, where=parse_where(["odd:1"]), mode="codes")
        assert len(odd) == 248
        assert index.search(query, 1, mode="exact")[0][0].distance > 0


def test_the_commands_train_evaluate_and_plot(
    rows: NDArray[np.float16], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    home, plot = tmp_path / "home", tmp_path / "codes.png"
    model = publish_tiny_model(home)
    new = [
        replace(each, key=f"{n % 3}/{n}", picture=pictures.jpeg(n, 64, 64)) for n, each in enumerate(images(rows[:300]))
    ]
    with LocalImageIndex.open(home, IndexOptions(model.fingerprint, model.id)) as index:
        index.add_many(new)

    def fc7(*words: str) -> Result:
        return CliRunner().invoke(app, ["codes", *words, "--home", str(home)])

    assert fc7("train", "--bits", "64", "--epochs", "1", "--plain").exit_code == 0
    options = ("--queries", "20", "--epochs", "1", "--plain")
    done = fc7("evaluate", "--bits", "128", *options, "--no-pixels", "--plot", str(plot))
    assert done.exit_code == 0, done.output
    assert "fc7 codes train --bits 128" in done.output
    assert "300 images, 20 of them queries, 3 classes" in done.output
    printed = fc7("evaluate", "--bits", "128", "--bits", "64", *options, "--json")
    sizes: dict[str, list[int]] = {}
    for each in json.loads(printed.stdout):
        assert 0 <= each["recall"] <= each["recall_wide"] <= 1
        sizes.setdefault(each["name"], []).append(each["bytes"])
    several = {name for name, found in sizes.items() if found == [8, 16]}
    trained = {"auto-encoder, plain", "auto-encoder of pixels", "auto-encoder of pixels, plain"}
    assert several == trained | {"sign-LSH", "PCA+ITQ", "OPQ+PQ", "OPQ+PQ fast-scan"}
    once = {name: size for name, (size, *_) in sizes.items() if name not in several}
    assert once == {"exact fc7": 8192, "raw pixels": 3072, "auto-encoder": 8, "RaBitQ": 16}
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 400
    assert plot.stat().st_size < 150_000
    assert fc7("evaluate", "--bits", "32").exit_code == 2
    refused = fc7("evaluate", "--plot", str(tmp_path / "none" / "codes.png"))
    assert refused.exit_code == 2
    assert "does not exist" in refused.output


def test_vectors_of_the_index_are_found_by_key(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image("a", 1), image("b", 2)])
        found = index.vectors(["b", "a"])
        assert np.array_equal(found["a"], vector(1).astype(np.float16))
        assert list(found) == ["b", "a"]


def test_the_manifest_describes_the_training(rows: NDArray[np.float16], trained: TrainedCodes, tmp_path: Path) -> None:
    values = json.loads((publish(tmp_path, trained, rows) / "manifest.json").read_text())
    assert values["bits"] == 64
    assert values["vectors"] == 600
    assert values["fingerprint"] == FINGERPRINT
