"""One request's way through the server: admitted, decoded, inferred, given up when nobody waits any more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from infercam.engine.api import Label, Result
from infercam.engine.data.images import RGB, decode_image
from infercam.engine.method.recipe import Mode, recipe
from infercam.engine.method.task import Inferred
from infercam.engine.run.settings import EngineSpec
from infercam.engine.serve.bounds import Bounds
from infercam.engine.serve.hosted import HostedBundle, Hosts
from infercam.engine.serve.isolation import Ask, ServiceIsolation, key_of
from infercam.engine.serve.metrics import Metrics
from infercam.engine.serve.refusals import CLIENT_GONE, Refusal

T = TypeVar("T")
_Asks = Callable[..., Awaitable[Any]]
"""(hosted, method of LiveEngine, its arguments) -> what it answers."""
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

    def __init__(
        self,
        hosts: Hosts,
        bounds: Bounds,
        default_recipe: str = "fast",
        isolation: ServiceIsolation | None = None,
    ) -> None:
        self.hosts = hosts
        self.bounds = bounds
        self.default_recipe = default_recipe
        self.isolation = isolation
        """What keeps a picture that ends the process from doing so again; None: nothing does."""
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
        async with self._watched(pixels) as ask:
            return await self._outcome(hosted, id, pixels, wish, ask, began)

    async def infer(self, hosted: HostedBundle, x: NDArray[np.float32]) -> Inferred:
        """The bare network's outputs for normalised pictures N×3×H×W."""
        async with self._watched(x) as ask:
            inferred: Inferred = await ask(hosted, "infer", x)
            return inferred

    @asynccontextmanager
    async def _watched(self, what: NDArray[Any]) -> AsyncIterator[_Asks]:
        """How to ask an engine about a picture: the hosted one, while the picture is noted as in flight; or, if the
        process was killed with it before, one in a process of its own."""
        isolation = self.isolation
        if isolation is None:
            yield self._ask
            return
        key = await self.on_thread(key_of, what)
        if isolation.suspects(key):

            async def alone(hosted: HostedBundle, ask: Ask, *args: Any) -> Any:
                spec = EngineSpec.of(hosted.engine)
                return await self.on_thread(isolation.alone, key, spec, ask, *args)

            yield alone
            isolation.harmless(key)
            return
        with isolation.watched(key):
            yield self._ask

    async def _ask(self, hosted: HostedBundle, ask: Ask, *args: Any) -> Any:
        if ask == "scores":  # it normalises the picture before it returns
            return await asyncio.wrap_future(await self.on_thread(hosted.live.scores, *args))
        return await asyncio.wrap_future(getattr(hosted.live, ask)(*args))

    async def _outcome(
        self, hosted: HostedBundle, id: str, pixels: RGB, wish: MapsRequest, ask: _Asks, began: float
    ) -> RequestOutcome:
        ladder = recipe(wish.recipe).ladder
        if wish.classes is None:
            scores = await ask(hosted, "scores", pixels, ladder)
            classes: Sequence[Label] = hosted.predicted(scores, wish.score_threshold)
            result = await self._maps(hosted, id, pixels, classes, wish, ask)
            return RequestOutcome(hosted, result, scores, time.perf_counter() - began)
        if not wish.scores:
            result = await self._maps(hosted, id, pixels, wish.classes, wish, ask)
            return RequestOutcome(hosted, result, None, time.perf_counter() - began)
        scores, result = await asyncio.gather(
            ask(hosted, "scores", pixels, ladder), self._maps(hosted, id, pixels, wish.classes, wish, ask)
        )
        return RequestOutcome(hosted, result, scores, time.perf_counter() - began)

    async def _maps(
        self,
        hosted: HostedBundle,
        id: str,
        pixels: RGB,
        classes: Sequence[Label],
        wish: MapsRequest,
        ask: _Asks,
    ) -> Result:
        area = len(classes) * pixels.shape[0] * pixels.shape[1]
        limit = self.bounds.pixels if wish.steps else self.bounds.map_pixels
        if area > limit:
            what = "the steps of " if wish.steps else ""
            raise Refusal(
                413, f"{what}{len(classes)} maps of this picture are too many: ask for fewer classes"
            )
        found: Result = await ask(hosted, "submit", id, pixels, classes, wish.recipe, wish.mode, wish.steps)
        return found

    def close(self, seconds: float) -> bool:
        """End all engines; see Hosts.close."""
        finished = self.hosts.close(seconds)
        if self.isolation is not None:
            self.isolation.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        return finished


async def _left(request: Request) -> None:
    """Returns when the client closes its connection (the body has been read)."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
