"""Behavior of an index on Milvus: replicas, outages, and its own filters, limits and migration."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from pymilvus.exceptions import MilvusException

from index.catalog.queries.export import export_parquet
from index.errors import (
    FilterError,
    IndexFormatError,
    IndexFullError,
    IndexLimitError,
    IndexReadOnlyError,
    IndexUnavailableError,
    IndexUnreachableError,
    IndexUriError,
    MilvusUnsupportedError,
    ModeUnavailableError,
    TargetExistsError,
)
from index.factory import open_index as open_anywhere
from index.factory import read_stats
from index.filters import parse_where
from index.milvus import export as milvus_export
from index.milvus.client import Milvus
from index.milvus.export import export_from_milvus
from index.milvus.index import MilvusImageIndex
from index.records import AddOutcome, MilvusAddress, NewImage
from model_store.errors import MissingExtraError
from tests.index.helpers import (
    Opener,
    exact,
    grouped,
    image,
    index_options,
    open_on_milvus,
    picture,
    sha256,
    vector,
)
from tests.index.helpers import open_index as open_locally
from tests.support.milvus import free_port, milvus_server

TOKEN = "root:s3cret"


class GrpcCode(Enum):
    """A code of gRPC, which pymilvus raises too."""

    UNAUTHENTICATED = 16


@pytest.fixture
def open_index() -> Iterator[Opener]:
    yield from open_on_milvus()


def open_with_token(uri: str) -> MilvusImageIndex:
    return MilvusImageIndex.open(MilvusAddress(uri, TOKEN, timeout_s=1.0), index_options())


def test_changes_of_one_replica_are_visible_to_the_other(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as one, open_index(tmp_path) as two:
        one.add_many([image("a", 1, {"label": "cat"}), image("b", 2)])
        assert [near.key for near in two.search(vector(1)[np.newaxis], 5)[0]] == ["a", "b"]
        assert [near.key for near in two.search(vector(2)[np.newaxis], 5, where=parse_where(["label:cat"]))[0]] == ["a"]
        two.change_metadata("b", lambda _: {"sharp": True})
        assert [record.key for record in one.list(where=parse_where(["sharp:true"])).images] == ["b"]
        two.add_many([image("a", 3)])
        assert one.similar("b", 1)[0].distance == two.similar("b", 1)[0].distance
        assert one.picture("a") == picture(3)
        one.delete("a")
        assert not two.contains("a")
        assert [near.key for near in two.search(vector(3)[np.newaxis], 5)[0]] == ["b"]
        one.add_many([image("c", 4)])
        cursor = one.list(1).next_cursor
        assert [record.key for record in two.list(1, cursor).images] == ["c"]


@pytest.mark.parametrize(
    "text",
    [
        '"] or id > "',
        "x') or 1 == 1 or ('",
        'a", "b"] or array_contains_any(tokens, ["',
        '{x}" or true',
        "\\",
        "%",
        "\n\t'\"`;--",
        "名前 🐦",
    ],
)
def test_user_input_is_never_part_of_a_milvus_expression(open_index: Opener, tmp_path: Path, text: str) -> None:
    key = text.replace("\n", "").replace("\t", "")
    with open_index(tmp_path) as index:
        index.add_many([image("other", 1, {"label": "cat", text: 1}), image(key, 2, {"label": text})])
        assert index.get(key).metadata == {"label": text}
        assert list(index.lookup([key, text + "?" if text.isprintable() else key])) == [key]
        label, field = json.dumps(text), json.dumps(text)
        for where, expected in [
            (f"label:{label}", [key]),
            (f"label:{json.dumps(text + 'x')}", []),
            (f"{field}:1", ["other"]),
            (f"{field}>=1", ["other"]),
            (f"label>={label}", [key] if text >= "cat" else sorted([key, "other"])),
        ]:
            assert sorted(r.key for r in index.list(where=parse_where([where])).images) == expected, where
        with pytest.raises(FilterError):
            index.list(where=parse_where([f"{json.dumps(text + 'x')}:1"]))
        assert [near.key for near in index.search(vector(2)[np.newaxis], 5, exclude=key)[0]] == ["other"]
        index.delete(key)
        assert index.contains("other")


def test_metadata_may_have_numbers_above_64_bits_and_thousands_of_values(open_index: Opener, tmp_path: Path) -> None:
    numbers = {"n": [*range(-99, 3300)], "huge": 10**400, "wide": 2**53 + 1}
    assert len(json.dumps(numbers, separators=(",", ":"))) > 16_000
    names = {f"{n:x}": n for n in range(1500)}
    with open_index(tmp_path) as index:
        index.add_many([image("numbers", 1, numbers), image("names", 2, names)])
        assert index.get("numbers").metadata == numbers
        for where in ("n>3298", "n<-98", "n:1234", "huge>1e308", "wide:9007199254740993", "huge:1" + "0" * 400):
            assert [r.key for r in index.list(where=parse_where([where])).images] == ["numbers"], where
        assert index.list(where=parse_where(["wide:9007199254740992"])).images == []
        assert [r.key for r in index.list(where=parse_where(["5db>=1499", "0:0"])).images] == ["names"]


def test_pictures_are_returned_unchanged_and_too_large_ones_are_rejected(open_index: Opener, tmp_path: Path) -> None:
    def of_size(size: int) -> NewImage:
        data = np.random.default_rng(size).bytes(size)
        return NewImage(f"p{size}", sha256(size), size, 1, 1, None, data, vector(1))

    with open_index(tmp_path) as index:
        for size in (0, 1, 49_149, 49_150, 130_000, 393_192):
            index.add_many([of_size(size)])
            assert index.picture(f"p{size}") == of_size(size).picture
        with pytest.raises(IndexLimitError, match=r"'p393193' has 393,193 bytes.*393,192 at most"):
            index.add_many([image("fine", 1), of_size(393_193)])
        assert not index.contains("fine")


def test_an_add_without_a_picture_keeps_the_stored_one(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image("a", 1), image("b", 2)])
    with open_index(tmp_path, keep_pictures=False) as index:
        assert index.add_many([image("a", 1, {"n": 1}), image("a", 1, {"n": 2})]) == [AddOutcome.REPLACED] * 2
        assert index.add_many([image("b", 3)]) == [AddOutcome.REPLACED]
        assert index.picture("a") == picture(1)
        assert not index.get("b").has_picture


def test_equal_distances_at_the_end_of_a_result_are_ordered_by_key(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(f"{n:02}", 1) for n in range(39, -1, -1)] + [image("near", 2)])
        assert [near.key for near in index.search(vector(1)[np.newaxis], 3)[0]] == ["00", "01", "02"]
        assert [near.key for near in index.search(vector(2)[np.newaxis], 3)[0]] == ["near", "00", "01"]
        with pytest.raises(IndexLimitError, match="2,000 at most"):
            index.search(vector(1)[np.newaxis], 2001)


def test_the_type_of_the_vector_index_determines_the_mode(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image(str(n), n) for n in range(50)])
        assert [index.mode(requested) for requested in (None, "exact", "fast")] == ["exact"] * 3
        with pytest.raises(ModeUnavailableError, match="on Milvus has no binary codes"):
            index.mode("codes")
        milvus = Milvus(MilvusAddress(str(tmp_path / "milvus.db")))
        collection = next(each for each in milvus.collections() if "_images_" in each)
        client = milvus._client
        client.release_collection(collection)
        client.drop_index(collection, "vector")
        parameters = client.prepare_index_params()
        parameters.add_index("vector", index_type="HNSW", metric_type="L2", params={"M": 16, "efConstruction": 100})
        client.create_index(collection, parameters)
        client.load_collection(collection)
        milvus.close()
    with open_index(tmp_path) as index:
        assert [index.mode(requested) for requested in (None, "fast")] == ["fast"] * 2
        with pytest.raises(ModeUnavailableError, match="HNSW, not FLAT"):
            index.search(vector(1)[np.newaxis], 3, mode="exact")
        distances = exact(np.stack([vector(n) for n in range(50)]), vector(99))
        found = index.search(vector(99)[np.newaxis], 5)[0]
        assert [near.key for near in found] == [str(n) for n in np.argsort(distances)[:5]]
        assert [near.distance for near in found] == pytest.approx(np.sort(distances)[:5])


def test_near_duplicates_are_found(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image("a", 1, {"n": 1}), image("b", 1, {"n": 1}), image("c", 2, {"n": 1}), image("d", 1)])
        assert grouped(index.duplicates(1.0, 10)) == [["a", "b", "d"]]
        assert grouped(index.duplicates(1.0, 10, where=parse_where(["n:1"]))) == [["a", "b"]]
        with pytest.raises(MilvusUnsupportedError, match="milvus-backup"):
            index.snapshot(tmp_path / "copy")


# --- addresses and failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://milvus", "scheme is not supported"),
        ("milvus:19530", "scheme is not supported"),
        ("http://", "no host"),
        ("http://milvus:port", "cannot be parsed"),
        ("nowhere/at/all/x.db", "the folder .* does not exist"),
        ("index.sqlite", "scheme is not supported"),
    ],
)
def test_an_invalid_address_is_rejected(uri: str, words: str) -> None:
    with pytest.raises(IndexUriError, match=words):
        open_anywhere(Path(), MilvusAddress(uri), index_options())


def test_a_password_in_the_address_is_rejected_and_not_shown() -> None:
    with pytest.raises(IndexUriError, match="FC7_INDEX_TOKEN") as caught:
        open_anywhere(Path(), MilvusAddress("http://root:s3cret@milvus:19530"), index_options())
    assert "s3cret" not in str(caught.value)


def test_the_error_without_pymilvus_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fc7\[scale\]'"):
        open_anywhere(Path(), MilvusAddress("http://milvus:19530"), index_options())


def test_pymilvus_is_imported_only_on_use() -> None:
    program = (
        "import sys, service.app, service.cli, index.factory\n"
        "assert not {'pymilvus', 'milvus_lite', 'torch'} & set(sys.modules)\n"
        "import pymilvus\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unreachable_milvus_raises_an_error_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (free_port(), silent.getsockname()[1]):
            started = time.monotonic()
            with pytest.raises(IndexUnreachableError, match=rf"127.0.0.1:{port} \(FC7_INDEX_URI\)") as caught:
                open_with_token(f"http://127.0.0.1:{port}")
            assert time.monotonic() - started < 5
            assert "s3cret" not in str(caught.value)
            assert TOKEN not in repr(caught.value)


@pytest.mark.slow
def test_nothing_is_lost_when_milvus_is_killed_and_restarted(tmp_path: Path) -> None:
    with (
        milvus_server(tmp_path / "data") as server,
        open_with_token(server.uri) as index,
        MilvusImageIndex.open(MilvusAddress(server.uri, timeout_s=30.0), index_options()) as patient,
        ThreadPoolExecutor(1) as executor,
    ):
        index.add_many([image(str(n), n, {"n": n}) for n in range(20)])
        server.kill()
        where = parse_where(["n>3"])
        for call in (
            lambda: index.search(vector(1)[np.newaxis], 3),
            lambda: index.add_many([image("new", 99)]),
            lambda: index.list(where=where),
            lambda: index.delete("1"),
            lambda: index.change_metadata("1", lambda _: {}),
            index.stats,
        ):
            started = time.monotonic()
            with pytest.raises(IndexUnreachableError, match="it is safe to send it again"):
                call()
            assert time.monotonic() - started < 4
        assert "FC7_INDEX_TIMEOUT_S=1" in index.trouble
        waiting = executor.submit(patient.add_many, [image("waited", 98)])
        server.start()
        assert waiting.result(40) == [AddOutcome.ADDED], "a call with more time waits for the restart"
        assert patient.trouble == ""
        deadline = time.monotonic() + 20
        while index.trouble and time.monotonic() < deadline:
            try:
                index.stats()
            except IndexUnreachableError:
                time.sleep(0.1)
        assert {record.key for record in index.list().images} >= {"waited", *map(str, range(20))}
        assert index.add_many([image("new", 99)]) in ([AddOutcome.ADDED], [AddOutcome.UNCHANGED])
        assert index.search(vector(99)[np.newaxis], 1)[0][0].key == "new"


def test_a_missing_closed_or_read_only_index_raises_an_error(open_index: Opener, tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailableError, match="fc7 index build DIR"):
        open_index(tmp_path, read_only=True)
    with pytest.raises(IndexUnavailableError, match="fc7 index build DIR"):
        read_stats(tmp_path, MilvusAddress(str(tmp_path / "milvus.db")))
    with open_index(tmp_path) as index:
        index.add_many([image("a", 1)])
    with pytest.raises(IndexUnavailableError, match="closed"):
        index.get("a")
    assert read_stats(tmp_path, MilvusAddress(str(tmp_path / "milvus.db"))).images == 1
    with open_index(tmp_path, read_only=True) as index:
        for change in (
            lambda: index.add_many([image("b", 1)]),
            lambda: index.delete("a"),
            lambda: index.change_metadata("a", lambda _: {"n": 1}),
        ):
            with pytest.raises(IndexReadOnlyError):
                change()


def test_errors_of_milvus_say_how_to_fix_them() -> None:
    def error(code: object, text: str) -> str:
        milvus = Milvus.__new__(Milvus)
        milvus.uri, milvus.timeout_s, milvus._token = "http://milvus:19530", 4.0, "root:s3cret"

        def fail() -> None:
            raise MilvusException(code, text)

        with pytest.raises(IndexUnavailableError) as caught:
            milvus._translate_errors(fail)
        assert text in milvus.trouble
        return f"{type(caught.value).__name__} {caught.value}"

    assert error(9, "quota exceeded[reason=disk quota exceeded]").startswith(IndexFullError.__name__)
    assert "Check FC7_INDEX_TOKEN" in error(65535, "auth check failure, please check username and password")
    assert "Check FC7_INDEX_TOKEN" in error(1401, "privilege not permitted")
    assert "Check FC7_INDEX_TOKEN" in error(GrpcCode.UNAUTHENTICATED, "no")
    dropped = error(100, "collection not found[collection=fc7_images_x]")
    assert "milvus-backup" in dropped
    assert "Acknowledged changes are kept" not in dropped
    assert "safe to send it again" in error(8, "rate limit exceeded")


def test_a_newer_format_and_a_dropped_collection_are_named(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many([image("a", 1)])
        milvus = Milvus(MilvusAddress(str(tmp_path / "milvus.db")))
        collection = next(each for each in milvus.collections() if "_images_" in each)
        milvus._client.drop_collection(collection)
        with pytest.raises(IndexUnavailableError, match="dropped"):
            index.get("a")
        milvus.write("fc7_meta", [{"id": "format", "value": "2", "vector": [0.0, 0.0]}])
        milvus.close()
        with pytest.raises(IndexFormatError, match=r"has format 2, .* Upgrade fc7"):
            open_index(tmp_path)


def test_the_parquet_file_equals_that_of_a_local_index_ordered_by_key(
    open_index: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milvus_export, "_GROUP", 3)
    images = [image(f"{n}", n, {"n": n, "grüße": ["a"]}) for n in range(8)]
    with open_locally(tmp_path / "local") as local:
        local.add_many(images)
        export_parquet(tmp_path / "local", tmp_path / "local.parquet")
    with open_index(tmp_path) as index:
        index.add_many(images)
        record = index.get("5")
        calls: list[tuple[int, int]] = []
        uri = str(tmp_path / "milvus.db")

        def export(name: str, **options: Any) -> int:
            return export_from_milvus(MilvusAddress(uri), tmp_path / name, **options)

        assert export("all.parquet", advance=lambda *call: calls.append(call)) == 8
        assert export("some.parquet", where=parse_where(["n>=6"])) == 2
        with pytest.raises(TargetExistsError):
            export("all.parquet")
        with pytest.raises(FilterError):
            export("none.parquet", where=parse_where(["m:1"]))
        with pytest.raises(IndexUnavailableError, match="no index named other"):
            export_from_milvus(MilvusAddress(uri, name="other"), tmp_path / "none.parquet")
    assert calls == [(3, 8), (6, 8), (8, 8)]
    ours, theirs = (pyarrow.parquet.read_table(tmp_path / f"{name}.parquet") for name in ("all", "local"))
    assert ours.schema.equals(theirs.schema, check_metadata=True)
    moments = ["added", "updated"]
    assert ours.drop_columns(moments).equals(theirs.drop_columns(moments))
    assert [ours[name][5].as_py() for name in moments] == [record.added, record.updated]
    assert pyarrow.parquet.read_table(tmp_path / "some.parquet")["key"].to_pylist() == ["6", "7"]
    assert not list(tmp_path.glob("*none.parquet*"))
