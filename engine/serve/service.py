"""One request's way through the server: admitted, decoded, inferred, given up when nobody waits any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from infercam.engine.api import Label, Result
from infercam.engine.data.images import RGB, decode_image
from infercam.engine.method.recipe import Mode
from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.hosted import HostedBundle, Hosts
from infercam.engine.serve.metrics import Metrics
from infercam.engine.serve.refusals import CLIENT_GONE, Refusal

T = TypeVar("T")
IO_THREADS = 2
"""Decode pictures and encode answers: the event loop never waits for either."""


@dataclass(frozen=True)
class MapsRequest:
    """What is asked of one picture."""

    classes: Sequence[Label] | None = None
    """None: those that the classifier predicts."""
    recipe: str = "fast"
    mode: Mode = "both"
    score_threshold: float = 0.5
    scores: bool = True
    """Whether all classes' scores are wanted: one more pass of the network over the picture."""
    steps: bool = False


@dataclass(frozen=True)
class RequestOutcome:
    """What one picture gave."""

    hosted: HostedBundle
    result: Result
    scores: NDArray[np.float32] | None
    """(C,) logits."""
    seconds: float


class Service:
    """What the routes share: the bundles, the bounds, the counts."""

    def __init__(self, hosts: Hosts, bounds: Bounds, default_recipe: str = "fast") -> None:
        self.hosts = hosts
        self.bounds = bounds
        self.default_recipe = default_recipe
        self.draining = False
        """Going down: not ready, but answering what it has accepted."""
        self.accepted = 0
        """Requests for inference that were admitted; each ends as answered, gone or dropped."""
        self.answered = 0
        self.gone = 0
        """Whose client left before the answer was written."""
        self.dropped = 0
        """Given up with 503, because draining took too long."""
        self._working: set[asyncio.Future[Any]] = set()
        self.open = 0
        self.metrics = Metrics(self)
        self._threads = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="infercam-io")

    @property
    def ready(self) -> bool:
        return not self.draining and all(hosted.live.alive for hosted in self.hosts)

    # -- admission -----------------------------------------------------------------------------------------
    @contextmanager
    def admitted(self, request: Request) -> Iterator[None]:
        """A place among those that are served; raises Refusal 429 where all are taken."""
        if self.open >= self.bounds.queue:
            raise Refusal(429, f"{self.open} requests are waiting; try again later", {"Retry-After": "1"})
        self.open += 1
        self.accepted += 1
        request.scope["infercam.accepted"] = True
        try:
            yield
        finally:
            self.open -= 1

    async def within_time(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The work's result; it is cancelled, and what it began dropped, after the time-out (Refusal 504) or when
        the client leaves (499)."""
        task = asyncio.ensure_future(work)
        left = asyncio.ensure_future(_left(request))
        self._working.add(task)
        try:
            async with asyncio.timeout(self.bounds.timeout):
                await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Refusal(CLIENT_GONE, "the client has left")
            if task.cancelled():
                raise Refusal(503, "the server is going down")
            return task.result()
        except TimeoutError:
            raise Refusal(504, f"not done within {self.bounds.timeout:g} s (--timeout)") from None
        finally:
            self._working.discard(task)
            task.cancel()
            left.cancel()
            await asyncio.gather(task, left, return_exceptions=True)

    def give_up(self) -> None:
        """Drop what is under way; those who wait are told."""
        self.dropped += len(self._working)
        for task in self._working:
            task.cancel()

    async def on_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run what takes long on one of the I/O threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    # -- inference -----------------------------------------------------------------------------------------
    async def decoded(self, data: bytes) -> RGB:
        """A picture file's pixels; raises InputError, TooManyPixels."""
        return await self.on_thread(decode_image, data, "image", self.bounds.pixels)

    async def maps(self, hosted: HostedBundle, id: str, pixels: RGB, wish: MapsRequest) -> RequestOutcome:
        """The maps, and the scores where they are wanted or needed."""
        began = time.perf_counter()
        if wish.classes is None:
            scores = await self.scores(hosted, pixels)
            classes: Sequence[Label] = hosted.predicted(scores, wish.score_threshold)
            result = await self._maps(hosted, id, pixels, classes, wish)
            return RequestOutcome(hosted, result, scores, time.perf_counter() - began)
        if not wish.scores:
            result = await self._maps(hosted, id, pixels, wish.classes, wish)
            return RequestOutcome(hosted, result, None, time.perf_counter() - began)
        scores, result = await asyncio.gather(
            self.scores(hosted, pixels), self._maps(hosted, id, pixels, wish.classes, wish)
        )
        return RequestOutcome(hosted, result, scores, time.perf_counter() - began)

    async def scores(self, hosted: HostedBundle, pixels: RGB) -> NDArray[np.float32]:
        future = await self.on_thread(hosted.live.scores, pixels)  # it normalises the picture there
        return await asyncio.wrap_future(future)

    async def _maps(
        self, hosted: HostedBundle, id: str, pixels: RGB, classes: Sequence[Label], wish: MapsRequest
    ) -> Result:
        area = len(classes) * pixels.shape[0] * pixels.shape[1]
        limit = self.bounds.pixels if wish.steps else self.bounds.map_pixels
        if area > limit:
            what = "the steps of " if wish.steps else ""
            raise Refusal(
                413, f"{what}{len(classes)} maps of this picture are too many: ask for fewer classes"
            )
        future = hosted.live.submit(id, pixels, classes, wish.recipe, wish.mode, wish.steps)
        return await asyncio.wrap_future(future)

    def close(self, seconds: float) -> bool:
        """End all engines; see Hosts.close."""
        finished = self.hosts.close(seconds)
        self._threads.shutdown(wait=True, cancel_futures=True)
        return finished


async def _left(request: Request) -> None:
    """Returns when the client closes its connection (the body has been read)."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
