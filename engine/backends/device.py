"""Everything on the GPU: images, tiles, masks, responses and maps live in its memory, and the host only hands out
work. What comes back is a few numbers per tile and iteration, and the finished maps.

A batch is reported done as soon as it is enqueued: nothing in it is for the host to decide, and the stream keeps
the order. So the next iterations of other tiles, and the sums of these, are queued behind it before it has even
begun, and the device never waits for a decision while there are images enough. Only the results of Advance and
Unite wait for an event, and `collect` waits for the oldest of those alone.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from infercam.engine.backends.device_limits import device_limits
from infercam.engine.backends.shape_memory import ShapeMemory
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import InfercamError
from infercam.engine.device.descriptors import (
    Accumulate,
    Cut,
    Gather,
    LowResponse,
    Part,
    Patch,
    Resize,
    Size,
    Slot,
    UniteCall,
    UnitePart,
)
from infercam.engine.device.driver import Bytes, DeviceLost, DeviceOutOfMemory, Driver, Event, Pointer
from infercam.engine.device.ops import (
    Ops,
    maps_nbytes,
    maps_stride,
    mask_nbytes,
    picture_nbytes,
    read_results,
    results_nbytes,
)
from infercam.engine.device.pool import Pool
from infercam.engine.device.residents import ImageOnDevice, LowResMap, TileOnDevice
from infercam.engine.device.runner import ANY_NUMBER, OutputShape, Runner
from infercam.engine.device.staging import Downloads, Landing, Uploads
from infercam.engine.method import host_ops
from infercam.engine.method.backend import Limits, OutOfMemory, Preparing
from infercam.engine.method.geometry import Box, ViewSizes
from infercam.engine.method.recipe import RECIPES, Mode, Recipe
from infercam.engine.method.task import (
    Advance,
    Done,
    ImageTask,
    Infer,
    Inferred,
    Respond,
    Tile,
    Unite,
    View,
    Work,
    covers,
    view_shapes,
)
from infercam.engine.method.trace import Inspected
from infercam.engine.method.windows import shares
from infercam.engine.runners.plan import Shape

Float = NDArray[np.float32]

DEPTH = 3
"""Batches enqueued and not finished: one runs, the others are there when it ends, whatever the host does."""
GRAPH_BATCHES = (64, 16, 4, 1)
"""Sizes of the batches in which the bare network is run."""
TYPICAL = (375, 500)
"""Height and width of an image by which the number in flight is chosen."""


class _Awaited(NamedTuple):
    """Work whose results are on their way to the host."""

    event: Event
    works: Sequence[Work]
    landing: Landing
    read: Callable[[Bytes], Sequence[Any]]
    """The landed bytes -> each work's result."""


class DeviceBackend:
    """See method/backend.py: Backend. Takes over `driver` and `runner`: closes them when it is closed.

    budget: bytes of device memory for images and batches, beside the network's own (default: a share of what is
    free now). batch_pixels: network pixels of a batch (default: see device_limits).
    """

    def __init__(
        self,
        bundle: Bundle,
        driver: Driver,
        runner: Runner,
        budget: int | None = None,
        batch_pixels: int | None = None,
        depth: int = DEPTH,
    ) -> None:
        self.name = runner.name
        self.manifest = bundle.manifest
        self.depth = depth
        self.driver = driver
        self.runner = runner
        spec = self.manifest.input
        self.sizes = ViewSizes.of_bundle(self.manifest)
        self._closed = False
        self._batches: deque[Event] = deque()
        self._advances: list[Advance] = []
        self._awaited: deque[_Awaited] = deque()
        self._ready: list[Done] = []
        self._lock = threading.RLock()
        """Scores may be asked for from any thread, also while another one submits."""
        self._met: dict[tuple[Recipe, Mode], Counter[Shape]] = {}
        """Of a recipe whose shapes come again: how many batches each (views, height, width) had."""
        self._memories: dict[tuple[Recipe, Mode], ShapeMemory] = {}
        self._bundle = bundle
        self._held: list[Done] = []
        """Batches that filled the queue: reported when there is room, so that `collect` has something to report
        whenever there is none."""
        self._device = driver.info()
        with driver.current():
            self.pool = Pool(driver, budget)
            self.uploads = Uploads(driver)
            self.downloads = Downloads(driver)
            self._ops = Ops(driver, spec, self.pool, self.uploads)
        self._asked_pixels = batch_pixels
        self._batch_pixels = self.limits.batch_pixels

    @property
    def precision(self) -> str:
        return self.runner.precision

    @property
    def limits(self) -> Limits:
        classes, cell = len(self.manifest.classes), self.manifest.stride**2
        keeps = self.runner.keeps
        return device_limits(
            self.pool.budget,
            3 * self._input_itemsize + 4 * classes / cell,
            self._device_bytes(*TYPICAL, RECIPES["released"], 2),
            dynamic_batch=self.manifest.input.dynamic_batch,
            batch_pixels=self._asked_pixels,
            keeps=0 if keeps >= ANY_NUMBER else keeps,
        )

    @property
    def _input_itemsize(self) -> int:
        return np.dtype(self.runner.input_type).itemsize

    def estimate(self, image: ImageTask) -> int:
        return self._device_bytes(image.height, image.width, image.recipe, max(1, len(image.classes)))

    def _device_bytes(self, height: int, width: int, recipe: Recipe, classes: int) -> int:
        """Of an image in flight. Tiles overlap: together they have up to about 2.5 times the image's pixels."""
        scales = {*recipe.views.scales, *recipe.first_of_tile().scales, *recipe.later().scales}
        seen = sum(s * s for s in scales)
        pictures = 3 * seen
        lows = 4 * classes * seen / self.manifest.stride**2
        accumulated = 4 * classes + 1
        return round(height * width * (3 + 2.5 * (pictures + lows + accumulated) + 4 * classes))

    @contextmanager
    def _using(self) -> Iterator[None]:
        """The device is this thread's alone within."""
        with self._lock, self.driver.current():
            yield

    # -- the loop ------------------------------------------------------------------------------------------
    def preparing(self, recipe: Recipe, mode: Mode) -> Iterator[Preparing]:
        """See method/backend.py: Backend. Exact sizes hardly come again: nothing is prepared for them."""
        if not self._returns(recipe):
            return
        known = self._memory(recipe, mode).read()
        shapes = [shape for shape, _ in known.most_common(self.runner.keeps) if self._can_be(shape)]
        for done, shape in enumerate(shapes):
            yield Preparing(done, len(shapes))
            with self._using():
                try:
                    ready = self.runner.prepare(*shape)
                except DeviceLost:
                    raise
                except InfercamError:  # it will be said of the batch that needs it
                    ready = False
            if not ready:
                return
        if shapes:
            yield Preparing(len(shapes), len(shapes))

    def _can_be(self, shape: Shape) -> bool:
        views, height, width = shape
        return views == 1 or views * height * width <= self._batch_pixels

    def remember(self) -> None:
        with self._lock:
            for (recipe, mode), met in self._met.items():
                self._memory(recipe, mode).note(met)

    def _memory(self, recipe: Recipe, mode: Mode) -> ShapeMemory:
        """What was met by the same network, on such a device, by the same recipe in batches as large."""
        if (recipe, mode) not in self._memories:
            self._memories[recipe, mode] = ShapeMemory(self._memory_key(recipe, mode))
        return self._memories[recipe, mode]

    def _memory_key(self, recipe: Recipe, mode: Mode) -> dict[str, Any]:
        info = self._device
        graphs = {
            name: self._bundle.manifest.files[file].sha256 for name, file in self.manifest.graphs.items()
        }
        return {
            "graphs": graphs,
            "runner": self.runner.name,
            "precision": self.runner.precision,
            "device": [info.name, *info.compute_capability],
            "batch_pixels": self._batch_pixels,
            "recipe": recipe.fingerprint(mode),
        }

    def has_room(self) -> bool:
        with self._using():
            while self._batches and self._batches[0].done():
                self._batches.popleft()
        return len(self._batches) < self.depth

    def submit(self, work: Work) -> None:
        if isinstance(work, Advance):  # kept until all that are due together are known: one launch for all
            self._advances.append(work)
            return
        with self._using():
            self._flush()
            try:
                if isinstance(work, Unite):
                    self._unite(work)
                elif isinstance(work, Infer):
                    self._outputs(work)
                else:
                    self._respond(work)
            except DeviceLost:
                raise
            except Exception as e:
                self._ready.append(Done(work, error=_translate(e)))

    def collect(self) -> list[Done]:
        """See method/backend.py: Backend. Where there is no room, it waits for the oldest batch alone: the next one
        is then submitted while the others run."""
        with self._using():
            self._flush()
            if not self._ready and not self.has_room():
                self._batches.popleft().wait()
            if self._held and self.has_room():
                self._ready += self._held
                self._held.clear()
            if not self._ready and self._awaited:
                self._land(self._awaited.popleft())
            while self._awaited and self._awaited[0].event.done():
                self._land(self._awaited.popleft())
        out, self._ready = self._ready, []
        return out

    def _land(self, awaited: _Awaited) -> None:
        """Wait for results and report them."""
        awaited.event.wait()
        results = awaited.read(awaited.landing.data)
        self.downloads.give_back(awaited.landing)
        self._ready += [Done(work, result) for work, result in zip(awaited.works, results, strict=True)]

    def inspect(self, tile: Tile) -> Inspected:
        """See method/backend.py: Backend; waits for the device."""
        size, classes = (tile.box.height, tile.box.width), len(tile.image.classes)
        planes = np.empty((classes, maps_stride(size)), np.float32)
        mask = np.empty(mask_nbytes(size), np.uint8)
        with self._using():
            self.driver.copy_out(_bytes(planes.view(np.uint8)), tile.state.accumulated)
            self.driver.copy_out(mask, tile.state.erased)
            self.driver.record().wait()
        maps = planes[:, : tile.box.area].reshape(classes, *size).copy()
        finished = host_ops.finish_in_place(maps, tile.image.recipe.accumulate, tile.iteration)
        return Inspected(finished, mask[: tile.box.area].reshape(size) != 0)

    def release(self, image: ImageTask) -> None:
        state, image.state = image.state, None
        if state is not None and not self._closed:
            with self._lock:
                state.release()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with self._using():
            with suppress(DeviceLost):  # then nothing runs any more
                self.driver.record().wait()
            self._batches.clear()
            self._awaited.clear()
            self._advances.clear()
            self.runner.close()
            self._ops.close()
            self.uploads.close()
            self.downloads.close()
            self.pool.close()
        self.driver.close()

    def describe(self) -> dict[str, object]:
        return {
            "backend": self.name,
            "runner": self.runner.describe(),
            "device": self.driver.describe(),
            "memory_budget": self.pool.budget,
            "batch_pixels": self._batch_pixels,
        }

    def scores(self, pixels: NDArray[np.uint8], ladder: bool = False) -> Float:
        size = self.sizes.of(pixels.shape[0], pixels.shape[1], ladder=ladder)
        height, width = size
        classes = len(self.manifest.classes)
        sizes = (pixels.size, picture_nbytes(size), 3 * height * width * self._input_itemsize, 4 * classes)
        with self._using(), self.pool.scratch(*sizes) as (image, picture, x, scores):
            landing = self.downloads.reserve(4 * classes)
            self.uploads.send(image, _bytes(pixels))
            box = Box(0, 0, *pixels.shape[:2])
            self._ops.resize([Resize(image, pixels.shape[1], box, size, picture)])
            self._ops.erase([Slot(picture)], size, x, self.runner.input_type)
            self.runner.scores(1, height, width, x, scores)
            self.downloads.fetch(landing, scores)
            self.driver.record().wait()
            out = landing.data.view(np.float32).copy()
            self.downloads.give_back(landing)
        return out

    # -- Infer ---------------------------------------------------------------------------------------------
    def _outputs(self, work: Infer) -> None:
        """The response of every input; the scores follow from it on the host (see bundle.py), but where the bias
        depends on the image, or they are no means of it: then the network runs once more for them."""
        n, _, height, width = work.x.shape
        shape = self.runner.response_shape(height, width)
        own = not self.manifest.scores_are_means
        each_scores = 4 * len(self.manifest.classes) if own else 0
        most = self.runner.max_batch(height, width)
        x = work.x.astype(self.runner.input_type, copy=False)
        each = 4 * _count(shape)
        landing = self.downloads.reserve(n * (each + each_scores))
        at_scores = n * each
        try:
            for begin, end in _few_sizes(n, most):
                part = x[begin:end]
                sizes = (part.nbytes, len(part) * each, *([len(part) * each_scores] if own else []))
                with self.pool.scratch(*sizes) as (image, response, *scores):
                    self.uploads.send(image, np.ascontiguousarray(part).view(np.uint8))
                    self.runner.respond(len(part), height, width, image, response)
                    data = landing.data[begin * each : end * each]
                    self.downloads.fetch(Landing(data, landing.buffer), response)
                    for pointer in scores:
                        self.runner.scores(len(part), height, width, image, pointer)
                        first, last = (at_scores + i * each_scores for i in (begin, end))
                        data = landing.data[first:last]
                        self.downloads.fetch(Landing(data, landing.buffer), pointer)
        except Exception:
            self.driver.record().wait()  # a part may be on its way into the buffer
            self.downloads.give_back(landing)
            raise

        def read(data: Bytes) -> Sequence[Inferred]:
            response = data[:at_scores].view(np.float32).reshape(n, *shape).copy()
            if own:
                return [Inferred(response, data[at_scores:].view(np.float32).reshape(n, -1).copy())]
            bias = np.asarray(self.manifest.bias, np.float32)
            return [Inferred(response, response.mean(axis=(2, 3)) + bias)]

        event = self.driver.record()
        self._batches.append(event)
        self._awaited.append(_Awaited(event, [work], landing, read))

    # -- Respond -------------------------------------------------------------------------------------------
    def _respond(self, work: Respond) -> None:
        """Enqueue a batch; where it fails for lack of memory it can be tried again, whole or in parts."""
        views = work.views
        self._upload({view.tile.image for view in views})
        self._resize(views)
        shape = self.runner.response_shape(*views[0].shape)
        most = self.runner.max_batch(*views[0].shape)
        for begin in range(0, len(views), most):
            part = views[begin : begin + most]
            self._infer(part, shape, min(most, work.slots - begin))
        self._batches.append(self.driver.record())
        (self._ready if len(self._batches) < self.depth else self._held).append(Done(work))

    def _upload(self, images: set[ImageTask]) -> None:
        for image in images:
            if image.state is None:
                image.state = ImageOnDevice(self.pool)
            if not image.state.pixels:
                pointer = image.state.allocate(image.pixels.size)
                self.uploads.send(pointer, _bytes(image.pixels))
                image.state.pixels = pointer

    def _resize(self, views: Sequence[View]) -> None:
        """Make the pictures that are not there yet, all in one launch."""
        missing: dict[tuple[int, tuple[int, int]], tuple[View, Resize]] = {}
        try:
            for view in views:
                tile, image = view.tile, view.tile.image
                if tile.state is None:
                    tile.state = TileOnDevice()
                key = (id(tile), view.whole)
                if view.whole not in tile.state.pictures and key not in missing:
                    pointer = image.state.allocate(picture_nbytes(view.whole))
                    item = Resize(image.state.pixels, image.width, tile.box, view.whole, pointer)
                    missing[key] = view, item
            if missing:
                self._ops.resize([item for _, item in missing.values()])
        except Exception:
            for view, item in missing.values():
                view.tile.image.state.free(item.picture)
            raise
        for view, item in missing.values():
            view.tile.state.pictures[view.whole] = item.picture

    def _infer(self, views: Sequence[View], shape: OutputShape, slots: int) -> None:
        """Run a batch of `slots` views, of which those beyond `views` are blank."""
        lows = [self._low(view, shape) for view in views]
        due = [
            (view, low)
            for view, low in zip(views, lows, strict=True)
            if (view.mirrored, view.at) not in low.seen
        ]
        if not due:
            return
        due.sort(key=lambda one: one[0].windowed)  # whole views first
        height, width = views[0].shape
        each = self._input_nbytes((height, width))
        with self.pool.scratch(slots * each, slots * 4 * _count(shape)) as (image, response):
            self._write_inputs([view for view, _ in due], image)
            if len(due) < slots:
                self.driver.zero(image + len(due) * each, (slots - len(due)) * each)
            self.runner.respond(slots, height, width, image, response)
            self._note(views[0].tile.image, (slots, height, width))
            self._ops.gather(_gathers(due), response, shape)
            self._ops.patch(self._patches(due, shape), response, shape)
        for view, low in due:
            low.seen.add((view.mirrored, view.at))

    def _input_nbytes(self, size: Size) -> int:
        return 3 * size[0] * size[1] * self._input_itemsize

    def _write_inputs(self, views: Sequence[View], out: Pointer) -> None:
        """The network's input of whole views, and then of windows, which are cut out of whole ones made beside it."""
        size, kind = views[0].shape, self.runner.input_type
        cut = [view for view in views if view.windowed]
        whole = [view for view in views if not view.windowed]
        self._ops.erase([self._slot(view) for view in whole], size, out, kind)
        sources = {(id(view.tile), view.scale, view.mirrored): view for view in cut}
        sizes = [self._input_nbytes(view.whole) for view in sources.values()]
        with self.pool.scratch(*sizes) as pointers:
            for view, pointer in zip(sources.values(), pointers, strict=True):
                self._ops.erase([self._slot(view)], view.whole, pointer, kind)
            at = dict(zip(sources, pointers, strict=True))
            items = [Cut(at[id(v.tile), v.scale, v.mirrored], v.whole, v.at) for v in cut]
            self._ops.cut(items, size, out + len(whole) * self._input_nbytes(size), kind)

    def _patches(self, due: Sequence[tuple[View, LowResMap]], shape: OutputShape) -> list[Patch]:
        """The windows of one view and its mirror image in one batch are one item."""
        found: dict[Pointer, Patch] = {}
        for slot, (view, low) in enumerate(due):
            if not view.windowed:
                continue
            cover = covers(view.tile, self.sizes)[view.scale]
            place = view.at[0] // cover.cell, view.at[1] // cover.cell
            rows = shares(cover.rows, shape.height)[cover.rows.index(place[0])]
            columns = shares(cover.columns, shape.width)[cover.columns.index(place[1])]
            patch = found.setdefault(low.pointer, Patch(low.pointer, low.size, view.tile.image.classes, []))
            patch.parts.append(Part(slot, view.mirrored, place, rows, columns))
        return list(found.values())

    def _note(self, image: ImageTask, shape: Shape) -> None:
        if self._returns(image.recipe):
            self._met.setdefault((image.recipe, image.mode), Counter())[shape] += 1

    def _returns(self, recipe: Recipe) -> bool:
        """Whether batches of one run have the shapes of another's: those of a ladder, or the only size there is."""
        return recipe.ladder or self.sizes.fixed is not None

    def _low(self, view: View, shape: OutputShape) -> LowResMap:
        """Where the view's responses are summed with its mirror image's."""
        lows: dict[int, LowResMap] = view.tile.state.lows
        if view.scale not in lows:
            image = view.tile.image
            cover = covers(view.tile, self.sizes)[view.scale]
            size = shape.height + cover.rows[-1], shape.width + cover.columns[-1]
            nbytes = 4 * len(image.classes) * size[0] * size[1]
            lows[view.scale] = LowResMap(image.state.allocate(nbytes), size)
            if view.windowed:  # they are added one by one
                self.driver.zero(lows[view.scale].pointer, nbytes)
        return lows[view.scale]

    def _slot(self, view: View) -> Slot:
        tile, recipe, state = view.tile, view.tile.image.recipe, view.tile.state
        picture = state.pictures[view.whole]
        if tile.iteration <= 0:
            return Slot(picture, view.mirrored)
        size = (tile.box.height, tile.box.width)
        chain = view_shapes(tile, self.sizes)[: view.scale]
        return Slot(
            picture,
            view.mirrored,
            state.erased,
            size,
            chain if recipe.mask_cascade else (),
            recipe.mask_mirrored,
        )

    # -- Advance -------------------------------------------------------------------------------------------
    def _flush(self) -> None:
        """Enqueue the Advances that were submitted, as one."""
        works, self._advances = self._advances, []
        if works:
            self._advance(works)

    def _advance(self, works: list[Advance]) -> None:
        try:
            self._accumulate(works)
        except DeviceLost:
            raise
        except Exception as e:  # one image's, or too much at once: in halves, down to the one that fails
            if len(works) == 1:
                self._ready.append(Done(works[0], error=_translate(e)))
                return
            self._advance(works[: len(works) // 2])
            self._advance(works[len(works) // 2 :])

    def _accumulate(self, works: list[Advance]) -> None:
        """Either all of it is enqueued, or nothing is and an exception is raised."""
        items = [_accumulate_item(work.tile) for work in works]
        nbytes = results_nbytes(items)
        landing = self.downloads.reserve(nbytes)
        try:
            with self.pool.scratch(nbytes) as (results,):
                self._ops.accumulate(items, results)
                self.downloads.fetch(landing, results)
        except Exception:
            self.downloads.give_back(landing)
            raise
        for work in works:
            tile, image = work.tile, work.tile.image.state
            image.drop_lows(tile.state)
            if tile.iteration + 1 == tile.iterations:
                image.drop_pictures(tile.state)
        event = self.driver.record()
        self._awaited.append(_Awaited(event, works, landing, lambda data: read_results(items, data)))

    # -- Unite ---------------------------------------------------------------------------------------------
    def _unite(self, work: Unite) -> None:
        image = work.image
        item = _unite_item(image)
        shape = (item.classes, *item.size)
        nbytes = 4 * item.classes * item.size[0] * item.size[1]
        landing = self.downloads.reserve(nbytes)
        try:
            with self.pool.scratch(nbytes) as (out,):
                self._ops.unite(item, out)
                self.downloads.fetch(landing, out)
        except Exception:
            self.downloads.give_back(landing)
            raise

        def read(data: Bytes) -> Sequence[Float]:
            return [data.view(np.float32).reshape(shape).copy()]  # the buffer goes to the next image

        self._awaited.append(_Awaited(self.driver.record(), [work], landing, read))


def _few_sizes(count: int, most: int) -> Iterator[tuple[int, int]]:
    """`count` inputs parted (begin, end) into batches of few sizes: a runtime prepares for each."""
    begin = 0
    for size in sorted({min(most, size) for size in GRAPH_BATCHES}, reverse=True):
        while count - begin >= size:
            yield begin, begin + size
            begin += size


def _gathers(due: Sequence[tuple[View, LowResMap]]) -> list[Gather]:
    """A view and its mirror image in one batch are one item."""
    slots: dict[int, tuple[View, LowResMap, dict[bool, int]]] = {}
    for at, (view, low) in enumerate(due):
        if view.windowed:
            continue
        slots.setdefault(low.pointer, (view, low, {}))[2][view.mirrored] = at
    return [
        Gather(low.pointer, view.tile.image.classes, at.get(False, -1), at.get(True, -1), bool(low.seen))
        for view, low, at in slots.values()
    ]


def _accumulate_item(tile: Tile) -> Accumulate:
    """What to do with a tile's responses; allocates its maps and mask when they are first needed."""
    image, recipe, state = tile.image, tile.image.recipe, tile.state
    size, classes = (tile.box.height, tile.box.width), len(image.classes)
    probes, first = tile.iteration < 0, tile.iteration == 0
    keeps = bool(tile.takes) and not probes
    if keeps and not state.accumulated:
        state.accumulated = image.state.allocate(maps_nbytes(classes, size))
    if keeps and not state.erased:
        state.erased = image.state.allocate(mask_nbytes(size))
    floor = None
    if tile.peak is not None and not probes:
        floor = np.float32(recipe.peak_floor) * tile.peak * np.float32(tile.views.count)
    return Accumulate(
        tile=size,
        classes=classes,
        lows=[LowResponse(low.pointer, low.size) for _, low in sorted(state.lows.items())],
        quantile=recipe.peak_quantile,
        floor=floor,
        accumulated=state.accumulated if keeps else 0,
        erased=state.erased if keeps else 0,
        first=first,
        mode=recipe.accumulate,
        compete=recipe.compete,
        threshold=recipe.threshold,
        locate=tile.locates and first,
    )


def _unite_item(image: ImageTask) -> UniteCall:
    parts, whole = [], None
    for tile in image.tiles:
        if not tile.takes or tile.state is None or not tile.state.accumulated:
            continue  # a centre pass, or a tile where the probe found nothing
        part = UnitePart(tile.state.accumulated, tile.box, tile.takes, tile.iteration)
        if tile.whole:
            whole = part
        else:
            parts.append(part)
    recipe = image.recipe
    alone = all(tile.whole or not tile.takes for tile in image.tiles)
    return UniteCall(
        size=(image.height, image.width),
        classes=len(image.classes),
        parts=parts,
        whole=whole,
        join="only" if alone else "max" if recipe.whole == "max" else "mean",
        weight=recipe.whole_weight,
        mode=recipe.accumulate,
    )


def _bytes(pixels: NDArray[np.uint8]) -> Bytes:
    return np.ascontiguousarray(pixels).reshape(-1)


def _count(shape: OutputShape) -> int:
    return shape.classes * shape.height * shape.width


def _translate(error: Exception) -> Exception:
    return OutOfMemory(str(error)) if isinstance(error, DeviceOutOfMemory) else error
