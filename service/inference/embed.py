"""Runs a request's images through admission, decoding, queueing and inference.

Guarantees: either all images of a request are admitted, before any is decoded, or none. The first image that fails
ends the request with an error that names its position. Work that has not started when the request is cancelled never
starts.
Out of scope: reading the request body, deadlines and disconnects (the caller cancels).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_store.decoder.decoder import Decoder, is_ordinary
from model_store.decoder.priority_pool import PriorityPool
from model_store.decoding.decode_cost import DecodeCost
from model_store.errors import Fc7Error
from model_store.image import CROP, SIZE, PreparedImage, encode_jpeg
from service.errors import BadImageError
from service.inference.admission import ExplainTask, Prediction
from service.inference.batcher import Ticket
from service.inference.model_pool import Serving
from service.observability.metrics import Metrics
from service.observability.request_log import Notes

_T = TypeVar("_T")
# A JPEG of 5 MB takes 0.07 s to decode; smaller images that arrive in the next second go first.
_DELAY_PER_BYTE: Final = 2e-7


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image and its prediction. `picture` is the prepared image as JPEG, if requested."""

    prepared: PreparedImage
    prediction: Prediction
    picture: bytes | None


@dataclass(frozen=True, slots=True)
class Embedder:
    """Embeds the images of requests. All methods run on the event loop; decoding runs in `decode_pool`, or in the
    processes of `decoder`.

    longest_wait_s: if an expensive image would wait longer for a process, it is refused.
    """

    decode_pool: PriorityPool
    decoder: Decoder
    metrics: Metrics
    longest_wait_s: float

    async def embed(
        self,
        notes: Notes,
        serving: Serving,
        images: Sequence[bytes],
        *,
        views: int = 1,
        pictures: bool = False,
        explain: ExplainTask | None = None,
    ) -> list[Embedded]:
        """Decode image files and run the model on them; return the results in order.

        pictures: also return the prepared images as JPEG. explain: also explain each answer, of one view. Raises
        BadImageError (for one of several images), ImageError (for a single one), QueueFullError, DrainingError,
        RunnerError or RunnerDeadError.
        """
        work = [partial(self._embed_one, data, views=views, picture=pictures, explain=explain) for data in images]
        return await self._admit_and_run(notes, serving, work)

    async def embed_views(self, notes: Notes, serving: Serving, pixels: NDArray[np.uint8]) -> list[Prediction]:
        """Run the model on views that are already cropped, uint8 [n,224,224,3]; return the predictions in order.

        Raises BadImageError, QueueFullError, DrainingError, RunnerError or RunnerDeadError.
        """
        # Prepared images, uint8 [256,256,3], whose center views are the given ones.
        edge = (SIZE - CROP) // 2
        work = [partial(self._run_one, np.pad(view, ((edge, edge), (edge, edge), (0, 0)))) for view in pixels]
        return await self._admit_and_run(notes, serving, work)

    async def _admit_and_run(
        self, notes: Notes, serving: Serving, work: Sequence[Callable[[Ticket, Notes], Coroutine[Any, Any, _T]]]
    ) -> list[_T]:
        """Admit one image for each entry of `work`, and run all entries; the first failure cancels the others."""
        notes.images = len(work)
        with serving.batcher.admit(len(work)) as ticket:
            if len(work) == 1:  # the most common case: an extra task would cost more than the call itself
                result = await work[0](ticket, notes)
                self.metrics.images.inc()
                return [result]
            tasks = [asyncio.create_task(image(ticket, notes)) for image in work]
            try:
                results = await asyncio.gather(*tasks)
            except Fc7Error as error:
                failed = next((i for i, task in enumerate(tasks) if task.done() and task.exception() is error), 0)
                raise BadImageError(failed, error) from error
            finally:
                for task in tasks:
                    task.cancel()
        self.metrics.images.inc(len(work))
        return results

    async def _embed_one(
        self, data: bytes, ticket: Ticket, notes: Notes, *, views: int, picture: bool, explain: ExplainTask | None
    ) -> Embedded:
        # The event loop wakes up only once, when the prediction is ready: the decoding thread queues the image itself.
        outcome: Future[Embedded] = Future()

        def queue(prepared: PreparedImage, started: float, *, wake: bool) -> None:
            jpeg = encode_jpeg(prepared.pixels) if picture else None
            seconds = time.perf_counter() - started
            prediction = ticket.submit(prepared.pixels, views, explain, wake=wake)
            self.metrics.stage_seconds.labels("decode").observe(seconds)
            notes.stage("decode", seconds)
            prediction.add_done_callback(lambda done: _forward(done, outcome, prepared, jpeg))

        def decode() -> None:
            if outcome.cancelled():
                return
            try:
                cost = self.decoder.check(data)
                if not is_ordinary(cost):
                    self._decode_in_worker(data, cost, ticket, outcome, partial(queue, wake=True))
                elif outcome.set_running_or_notify_cancel():
                    with ticket.decoding():
                        started = time.perf_counter()
                        queue(self.decoder.decode_here(data, cost), started, wake=False)
            except BaseException as error:
                _fail(outcome, error)

        # Until its header is read, the size of an image is the best estimate of its cost.
        self.decode_pool.schedule(decode, delay=len(data) * _DELAY_PER_BYTE)
        embedded = await asyncio.wrap_future(outcome)
        self._record(embedded.prediction, notes)
        return embedded

    def _decode_in_worker(
        self,
        data: bytes,
        cost: DecodeCost,
        ticket: Ticket,
        outcome: Future[Embedded],
        queue: Callable[[PreparedImage, float], None],
    ) -> None:
        """Decode an expensive image without keeping a decoding thread or a core, then `queue` it.

        Raises DecoderBusyError.
        """
        started = time.perf_counter()
        decoding = self.decoder.schedule(data, cost, longest_wait=self.longest_wait_s)
        ticket.set_aside()  # batches do not wait for it

        def finish(done: Future[PreparedImage]) -> None:
            if done.cancelled() or not outcome.set_running_or_notify_cancel():
                outcome.cancel()
                return
            try:
                queue(done.result(), started)
            except BaseException as error:
                _fail(outcome, error)

        outcome.add_done_callback(lambda _: decoding.cancel())  # the request ended: if it still waits, it never starts
        decoding.add_done_callback(finish)

    async def _run_one(self, pixels: NDArray[np.uint8], ticket: Ticket, notes: Notes) -> Prediction:
        prediction = await asyncio.wrap_future(ticket.submit(pixels))
        self._record(prediction, notes)
        return prediction

    def _record(self, prediction: Prediction, notes: Notes) -> None:
        self.metrics.stage_seconds.labels("queue").observe(prediction.queue_seconds)
        notes.stage("queue", prediction.queue_seconds, ago=prediction.run_seconds)
        notes.stage("run", prediction.run_seconds)


def _fail(outcome: Future[Embedded], error: BaseException) -> None:
    """Set the exception of `outcome`, unless the request was cancelled."""
    if outcome.running() or outcome.set_running_or_notify_cancel():
        outcome.set_exception(error)


def _forward(
    done: Future[Prediction], outcome: Future[Embedded], prepared: PreparedImage, picture: bytes | None
) -> None:
    """Set `outcome` from the finished prediction."""
    if done.cancelled():
        outcome.set_exception(CancelledError())
    elif (error := done.exception()) is not None:
        outcome.set_exception(error)
    else:
        outcome.set_result(Embedded(prepared, done.result(), picture))
