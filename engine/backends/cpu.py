"""The network on the CPU, the embedded default: by ONNX Runtime, or (openvino.py) by OpenVINO.

Each worker thread takes one unit of work at a time and runs the network on itself alone (one intra-op thread), so
resizing, masking and uniting run in parallel too. On 2 cores that is about a fifth faster than one session with
two threads. Every view is a run of its own: batches gain nothing that can be told from noise here (their activations
leave the cache), and so an image's maps are the same bytes whatever else is in flight.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import AFFINITY_OUTPUT, Bundle
from infercam.engine.common.cores import available_cores
from infercam.engine.method import host_ops
from infercam.engine.method.backend import Limits, OutOfMemory, Preparing
from infercam.engine.method.geometry import ViewSizes, whole_box
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.method.reference import crop
from infercam.engine.method.resampling import Picture
from infercam.engine.method.task import (
    Advance,
    Advanced,
    Done,
    ImageTask,
    Infer,
    Inferred,
    Respond,
    Tile,
    View,
    Work,
    covers,
    view_shapes,
)
from infercam.engine.method.trace import Inspected
from infercam.engine.method.windows import Cover, put_together
from infercam.engine.runners.cpu_network import CpuNetwork
from infercam.engine.runners.ort_cpu import OrtCpuNetwork
from infercam.engine.runners.ort_errors import out_of_memory

Float = NDArray[np.float32]


@dataclass
class TileState:
    """What the host keeps of a tile."""

    picture: Picture | None = None
    """None before the first view, and when there is nothing more to infer."""
    resized: dict[tuple[int, int], host_ops.Resized] = field(default_factory=dict)
    responses: dict[tuple[int, bool, tuple[int, int]], Float] = field(default_factory=dict)
    """(scale position, mirrored, place of the window) -> K×h×w of this iteration, before ReLU."""
    accumulated: Float | None = None
    erased: NDArray[np.bool_] | None = None
    """At tile size; None until the first iteration has ended."""
    masks: list[NDArray[np.bool_]] | None = None
    """`erased` at the size of each view; made by the iteration's first view."""


class CpuBackend:
    """See method/backend.py: Backend. `threads`: worker threads (default: the cores this process may use).

    precision: see OrtCpuNetwork. network: what runs it (default: ONNX Runtime).
    """

    name = "cpu"

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        precision: str = "fp32",
        network: CpuNetwork | None = None,
    ) -> None:
        self.manifest = bundle.manifest
        self.threads = threads or available_cores()
        self.precision = precision
        self._network = network or OrtCpuNetwork(bundle, precision)
        spec = self.manifest.input
        self._table = host_ops.normalise_table(spec)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="infercam-cpu")
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._in_flight = 0
        self.sizes = ViewSizes.of_bundle(self.manifest)

    @property
    def limits(self) -> Limits:
        return Limits(
            batch_pixels=1,  # one view, whatever its size: see above
            batch_views=1,
            images=self.threads + 2,
        )

    def estimate(self, image: ImageTask) -> int:
        area = image.height * image.width
        recipe = image.recipe
        scales = {*recipe.views.scales, *recipe.first_of_tile().scales, *recipe.later().scales}
        copies = 3 * (1 + sum(s * s for s in scales))
        per_class = 4 * 3  # accumulated, sum and united maps, float32
        return round(area * (3 + 2.5 * (copies + per_class * max(1, len(image.classes)))))

    def preparing(self, recipe: Recipe, mode: Mode) -> Iterator[Preparing]:
        return iter(())  # a new shape costs nothing

    def remember(self) -> None:
        pass

    def has_room(self) -> bool:
        return self._in_flight <= self.threads  # one waits, so that no worker idles

    def submit(self, work: Work) -> None:
        self._in_flight += 1
        for view in work.views if isinstance(work, Respond) else ():
            if view.tile.state is None:  # here and not on a worker: two of them may start on one tile
                view.tile.state = TileState()
        self._pool.submit(self._run, work)

    def collect(self) -> list[Done]:
        out: list[Done] = []
        while self._in_flight and (not out or not self._done.empty()):
            out.append(self._done.get())
            self._in_flight -= 1
        return out

    def release(self, image: ImageTask) -> None:
        image.state = None

    def inspect(self, tile: Tile) -> Inspected:
        state: TileState = tile.state
        assert state.accumulated is not None and state.erased is not None
        recipe = tile.image.recipe
        maps = host_ops.finish_in_place(state.accumulated.copy(), recipe.accumulate, tile.iteration)
        return Inspected(maps, state.erased.copy())

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def describe(self) -> dict[str, object]:
        return {
            "backend": self.name,
            "precision": self.precision,
            "threads": self.threads,
            **self._network.describe(),
        }

    def scores(self, pixels: NDArray[np.uint8], ladder: bool = False) -> Float:
        height, width = self.sizes.of(pixels.shape[0], pixels.shape[1], ladder=ladder)
        x = np.empty((1, 3, height, width), np.float32)
        self._resize(Picture(np.ascontiguousarray(pixels)), (height, width)).write(
            x[0], mirrored=False, erased=None
        )
        return np.asarray(self._infer(self.manifest.scores, x)[0], np.float32)

    # -- the work, on a worker thread ----------------------------------------------------------------------
    def _run(self, work: Work) -> None:
        try:
            self._done.put(Done(work, self._do(work)))
        except Exception as e:
            self._done.put(Done(work, error=_translate(e)))

    def _do(self, work: Work) -> Any:
        if isinstance(work, Respond):
            return self._respond(work.views)
        if isinstance(work, Advance):
            return self._advance(work.tile)
        if isinstance(work, Infer):
            return self._outputs(work.x)
        return self._unite(work.image)

    def _outputs(self, x: Float) -> Inferred:
        response, scores = self._run_network([self.manifest.response, self.manifest.scores], x)
        return Inferred(np.asarray(response, np.float32), np.asarray(scores, np.float32))

    def _respond(self, views: list[View]) -> None:
        x = np.empty((len(views), 3, *views[0].shape), np.float32)
        for view, slot in zip(views, x, strict=True):
            self._write_input(view, slot)
        recipe = views[0].tile.image.recipe
        if recipe.refine == "affinity":
            found = self._run_network([self.manifest.response, AFFINITY_OUTPUT], x)
            for view, response, affinity in zip(views, *found, strict=True):
                kept = response[view.tile.image.classes]
                view.tile.state.responses[response_key(view)] = host_ops.refined(
                    kept, affinity, recipe.refine_steps
                )
            return
        for view, response in zip(views, self._infer(self.manifest.response, x), strict=True):
            # a copy of the present classes only, or the whole batch's output would stay alive
            view.tile.state.responses[response_key(view)] = response[view.tile.image.classes]

    def _write_input(self, view: View, slot: Float) -> None:
        tile, state = view.tile, view.tile.state
        resized = state.resized.get(view.whole)
        if resized is None:
            if state.picture is None:  # two workers may both make it: the same bytes
                whole = tile.box == whole_box(tile.image.height, tile.image.width)
                state.picture = Picture(crop(tile.image.pixels, tile.box), recurs=whole)
            resized = state.resized.setdefault(view.whole, self._resize(state.picture, view.whole))
        resized.write(slot, view.mirrored, self._erased(view), view.at)

    def _erased(self, view: View) -> NDArray[np.bool_] | None:
        """What is erased of a whole view, in its orientation; None in the first iteration."""
        tile, state = view.tile, view.tile.state
        if state.erased is None:
            return None
        if state.masks is None:  # two workers may both make it: the same masks
            state.masks = self._masks(tile, state.erased)
        erased: NDArray[np.bool_] = state.masks[view.scale]
        return erased[:, ::-1] if view.mirrored and tile.image.recipe.mask_mirrored else erased

    def _resize(self, picture: Picture, shape: tuple[int, int]) -> host_ops.Resized:
        return host_ops.Resized(picture, shape, self._table, self.manifest.input.colour)

    def _infer(self, output: str, x: Float) -> Any:
        return self._run_network([output], x)[0]

    def _run_network(self, outputs: list[str], x: Float) -> Any:
        return self._network.run(outputs, x)

    def _advance(self, tile: Tile) -> Advanced:
        state: TileState = tile.state
        total = self._total(tile, state.responses)
        state.responses = {}
        peak = host_ops.peaks(total, tile.image.recipe.peak_quantile)
        if tile.iteration < 0:
            return Advanced(0, peak, [])
        n = host_ops.normalise_in_place(total, self._floor(tile), peak)
        first = tile.iteration == 0
        centres = [host_ops.centre_of_mass(m) for m in n] if tile.locates and first else []
        erased = self._accumulate(tile, state, n) if tile.takes else 0
        if tile.iteration + 1 == tile.iterations:
            state.picture, state.resized = None, {}  # nothing more to infer
        return Advanced(erased, peak, centres)

    def _total(self, tile: Tile, responses: dict[tuple[int, bool, tuple[int, int]], Float]) -> Float:
        def of(scale: int, mirrored: bool, cover: Cover) -> Float:
            return put_together([responses[scale, mirrored, at] for at in cover.places], cover)

        pairs = [
            (of(i, False, cover), of(i, True, cover) if tile.views.mirror else None)
            for i, cover in enumerate(covers(tile, self.sizes))
        ]
        return host_ops.sum_views(pairs, len(tile.image.classes), tile.box.height, tile.box.width)

    @staticmethod
    def _floor(tile: Tile) -> Float | float:
        if tile.peak is None:
            return 0.0
        return np.float32(tile.image.recipe.peak_floor) * tile.peak * np.float32(tile.views.count)

    def _masks(self, tile: Tile, erased: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
        return host_ops.masks_at(erased, view_shapes(tile, self.sizes), tile.image.recipe.mask_cascade)

    @staticmethod
    def _accumulate(tile: Tile, state: TileState, n: Float) -> int:
        """Add this iteration's maps, update the mask; returns the number of newly erased pixels."""
        recipe = tile.image.recipe
        erased = n.max(axis=0) >= np.float32(recipe.threshold)
        before = 0
        if state.accumulated is None:
            state.accumulated = n
        else:
            if recipe.compete:
                host_ops.compete_in_place(n, state.accumulated)
            join = np.maximum if recipe.accumulate == "max" else np.add
            join(state.accumulated, n, out=state.accumulated)
            assert state.erased is not None
            before = int(np.count_nonzero(state.erased))
            erased |= state.erased
        state.erased, state.masks = erased, None
        return int(np.count_nonzero(erased)) - before

    def _unite(self, image: ImageTask) -> Float:
        out = np.zeros((len(image.classes), image.height, image.width), np.float32)
        whole: Float | None = None
        for tile in image.tiles:
            if not tile.takes:
                continue
            maps = self._final(tile)
            if maps is None:
                continue
            if tile.whole:
                whole = maps
                continue
            part = out[:, tile.box.y0 : tile.box.y1, tile.box.x0 : tile.box.x1]
            for c in tile.takes:
                np.maximum(part[c], maps[c], out=part[c])
        return _with_whole(image, out, whole)

    @staticmethod
    def _final(tile: Tile) -> Float | None:
        """The tile's maps; None where a probe found nothing."""
        maps: Float | None = tile.state.accumulated
        if maps is None:
            return None
        return host_ops.finish_in_place(maps, tile.image.recipe.accumulate, tile.iteration)


def response_key(view: View) -> tuple[int, bool, tuple[int, int]]:
    """Where a view's response is kept, see TileState.responses."""
    return view.scale, view.mirrored, view.at


def _with_whole(image: ImageTask, united: Float, whole: Float | None) -> Float:
    """Unite the tiles' map with the whole image's, as the recipe says."""
    if whole is None:
        return united
    if all(t.whole or not t.takes for t in image.tiles):
        return whole
    if image.recipe.whole == "max":
        return np.maximum(united, whole, out=united)
    weight = np.float32(image.recipe.whole_weight)
    united *= 1 - weight
    united += weight * whole
    return united


def _translate(error: Exception) -> Exception:
    """Allocation failures become OutOfMemory, the rest stays as it is."""
    text = str(error)
    if isinstance(error, MemoryError) or out_of_memory(text):
        return OutOfMemory(f"out of memory: {text.splitlines()[0] if text else 'allocation failed'}")
    return error
