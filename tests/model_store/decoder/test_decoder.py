"""The decoder: what is decoded where, refusals, and events."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from model_store.decoder.decoder import Decoder
from model_store.decoder.limits import DecodeLimits
from model_store.errors import DecodeMemoryError, DecoderBusyError, DecodeTimeError, ImageTooLargeError
from model_store.image import prepare
from tests.support import costly_images as costly
from tests.support.pictures import encoded, jpeg, scene


def test_ordinary_pictures_start_no_process() -> None:
    with Decoder() as decoder:
        assert np.array_equal(decoder.prepare(jpeg()), prepare(jpeg()))
        assert decoder.worker_pids == []
        decoder.prepare(encoded(scene(), "AVIF"))
        assert len(decoder.worker_pids) == 1


def test_refusals_name_the_number_the_limit_and_the_setting() -> None:
    events: Counter[str] = Counter()
    with Decoder(DecodeLimits(seconds=1, bytes=50_000_000), on_event=lambda event: events.update([event])) as decoder:
        with pytest.raises(DecodeTimeError, match=r"takes \d+(\.\d)? s or more, and the limit is 1 s \(FC7_DECODE_S\)"):
            decoder.decode(costly.jpeg_with_scans(4000, 4000, 200))
        with pytest.raises(DecodeMemoryError, match=r"takes 1\d\d MB .* the limit is 50 MB \(FC7_MAX_DECODE_MB\)"):
            decoder.decode(costly.png(5000, 5000))
        with pytest.raises(ImageTooLargeError, match="67,108,864"):
            decoder.decode(costly.tiff(10, 10, tile=(8192, 8192)))
        assert decoder.worker_pids == []
    assert events == {"refused": 3}


def test_many_threads_share_workers_and_memory() -> None:
    picture = costly.png(1500, 1500)
    with Decoder(workers=2, memory=30_000_000) as decoder, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(decoder.prepare, [picture, encoded(scene(), "AVIF"), jpeg()] * 6))
        assert len(decoder.worker_pids) <= 2
    assert all(result.shape == (256, 256, 3) for result in results)


def test_a_picture_that_would_wait_too_long_is_refused() -> None:
    slow = costly.rle_bmp(2_000_000, 1)
    with Decoder(workers=1) as decoder:
        cost = decoder.check(slow)
        waiting = [decoder.schedule(slow, cost) for _ in range(5)]
        with pytest.raises(DecoderBusyError, match="Try again in"):
            decoder.schedule(slow, cost, longest_wait=1.0)
        quick = encoded(scene(), "AVIF")  # would overtake them
        decoder.schedule(quick, decoder.check(quick), longest_wait=1.0).result(20)
        assert not all(each.done() for each in waiting)
    assert any(each.cancelled() for each in waiting)


def test_a_closed_decoder_raises() -> None:
    decoder = Decoder()
    decoder.close()
    decoder.close()
    for picture in (jpeg(), encoded(scene(), "AVIF")):
        with pytest.raises(RuntimeError, match="the decoder is closed"):
            decoder.decode(picture)
