"""The Python API: `Engine.load(bundle).maps(image, classes=[...])`, and a stream with the same batching."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from infercam.engine.backends import ON_CPU, Backend, Choice, load_chosen
from infercam.engine.bundle import Bundle, Manifest
from infercam.engine.common.errors import InputError
from infercam.engine.common.suggest import did_you_mean
from infercam.engine.data.images import read_image
from infercam.engine.method.backend import Preparing
from infercam.engine.method.loop import Loop
from infercam.engine.method.recipe import Mode, Recipe, Views, checked_mode, recipe
from infercam.engine.method.scheduler import Finished, NotFinite, Scheduler
from infercam.engine.method.task import ImageTask
from infercam.engine.method.trace import Trace

Picture = NDArray[np.uint8] | str | os.PathLike[str]
Label = int | str | np.integer


@dataclass(frozen=True)
class Result:
    """One image's outcome: its maps, or the error that kept it from having any."""

    id: str
    classes: list[int]
    """Indices into the bundle's classes, in the order of `maps`."""
    maps: NDArray[np.float32] = field(repr=False)
    """K×H×W in 0..1; empty where `error` is set."""
    iterations: list[int] = field(default_factory=list)
    """Of each tile, in the order in which they converged."""
    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)
    """The picture, H×W×3 RGB."""
    error: Exception | None = None
    trace: Trace | None = field(default=None, repr=False)
    """The steps, where they were asked for (LiveEngine.submit)."""
    queued: float = 0.0
    """Seconds that it waited for others before it was begun (LiveEngine)."""


class Engine:
    """A bundle on a backend. Use as a context manager, or call `close`."""

    def __init__(self, bundle: Bundle, backend: Backend, choice: Choice | None = None) -> None:
        self.bundle = bundle
        self.backend = backend
        self.choice = choice or Choice(backend.name, {})
        """Why it is this backend and not a better one."""
        self.scheduler: Scheduler | None = None
        """Of the stream under way (its `stats`, its `tiles_in_flight`)."""
        self._streaming = threading.Lock()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        backend: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
    ) -> Engine:
        """Open a bundle; raises BundleError, BackendError or MissingExtra.

        backend, precision: see backends.load_backend.
        """
        loaded = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        return cls(loaded, *load_chosen(backend, loaded, threads, precision))

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def class_indices(self, classes: Iterable[Label]) -> list[int]:
        """Indices of classes given by name or index, order kept, repeats dropped; raises InputError."""
        out: dict[int, None] = {}
        for label in classes:
            try:
                plain = int(label) if isinstance(label, np.integer) else label
                out[self.manifest.class_index(plain)] = None
            except (KeyError, TypeError):
                known = ", ".join(self.manifest.classes[:8])
                raise InputError(
                    f"label {label!r} is not one of the bundle's {len(self.manifest.classes)} classes "
                    f"({known}, …){did_you_mean(label, self.manifest.classes)}"
                ) from None
        return list(out)

    def recipe(self, which: str | Recipe) -> Recipe:
        """The recipe as this bundle can run it: windows are for a graph of one size that says how many cells its
        response has; without them it has no scales to choose from.

        Raises InputError where it refines by an affinity that the bundle lacks, or on a GPU.
        """
        chosen = recipe(which)
        if chosen.refine == "affinity":
            self._check_affinity()
        sizes = self.backend.sizes
        if chosen.windows and sizes.windows is not None:
            return chosen
        chosen = chosen.model_copy(update={"windows": False})
        if sizes.fixed is None:
            return chosen
        one = {"scales": (1.0,)}
        views = {
            name: Views(**{**v.model_dump(), **one})
            for name in ("views", "tile_views", "later_views", "centre_views")
            if (v := getattr(chosen, name)) is not None
        }
        return chosen.model_copy(update=views)

    def _check_affinity(self) -> None:
        if self.manifest.affinity is None:
            raise InputError(
                "refine=affinity: this bundle has no affinity; export a transformer with --affinity BLOCKS"
            )
        if self.backend.name not in ON_CPU:
            raise InputError(
                f"refine=affinity runs on the CPU only, not on {self.backend.name}: use --backend cpu"
            )

    def maps(
        self,
        image: Picture,
        classes: Iterable[Label],
        recipe: str | Recipe = "released",
        mode: Mode = "both",
    ) -> NDArray[np.float32]:
        """Refined response maps of one picture, float32 K×H×W in 0..1, one per class in the order given.

        image: H×W×3 uint8 RGB, or a path. Raises InputError for a bad picture or class.
        """
        result = next(iter(self.stream([("image", image, classes)], recipe, mode)))
        if result.error is not None:
            raise result.error
        return result.maps

    def scores(self, image: Picture, ladder: bool = False) -> NDArray[np.float32]:
        """The classifier's logits (C,) for one picture at its own size; ladder: at the nearest of few sizes, as
        runs of recipes with a ladder have it (a GPU prepares for every size)."""
        return self.backend.scores(_pixels(image), ladder)

    def predict(self, image: Picture, threshold: float = 0.5, ladder: bool = False) -> list[int]:
        """Classes whose probability (sigmoid, or softmax for a single-label classifier) passes `threshold`.

        ladder: see `scores`.
        """
        return [int(i) for i in np.flatnonzero(self.probabilities(self.scores(image, ladder)) > threshold)]

    def probabilities(self, scores: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits (C,) as probabilities: sigmoid, or softmax for a single-label classifier.

        Raises NotFinite where they are no numbers: every comparison with a threshold would be false.
        """
        wide = scores.astype(np.float64)
        if not np.isfinite(wide).all():
            raise NotFinite
        if self.manifest.multi_label:
            return 1 / (1 + np.exp(-wide))
        e = np.exp(wide - wide.max())
        return e / e.sum()

    def stream(
        self,
        items: Iterable[tuple[str, Picture, Iterable[Label]]],
        recipe: str | Recipe = "released",
        mode: Mode = "both",
        on_turn: Callable[[Scheduler], None] | None = None,
    ) -> Iterator[Result]:
        """Maps of many pictures, batched together; results come as images finish, in any order.

        items: (id, picture or path, classes), drawn only as memory allows. A bad picture or class gives a Result
        with `error` set and the stream goes on. An engine runs one stream at a time (`maps` is one, too): begin
        the next when this one has ended or is closed, or InputError is raised.
        """
        self._settled(recipe, mode)  # a wrong one is refused before anything is drawn
        pending = iter(items)
        more = True
        with self.driving() as loop:
            while True:
                while more and loop.wants():
                    item = next(pending, None)
                    more = item is not None
                    if item is not None:
                        early = self._admit(loop, *item, recipe, mode)
                        if early is not None:
                            yield early
                loop.submit()
                if on_turn is not None:
                    on_turn(loop.scheduler)
                if loop.idle and not more:
                    return
                yield from map(result_of, loop.collect())

    def preparing(self, recipe: str | Recipe, mode: Mode = "both") -> Iterator[Preparing]:
        """Get ready for the batches that earlier runs of that recipe had on such a device; see Engine.remember.

        Step by step, so that it can be shown, and left. Nothing to do on a CPU.
        """
        return self.backend.preparing(self._settled(recipe, mode), mode)

    def remember(self) -> None:
        """Note in the user's cache folder what batches there were, for later runs to prepare for."""
        self.backend.remember()

    @contextmanager
    def driving(self) -> Iterator[Loop]:
        """The loop that drives this engine's backend; only one at a time, or InputError is raised."""
        if not self._streaming.acquire(blocking=False):  # the backend would give one's results to the other
            raise InputError("this engine is in the middle of another stream; finish or close that one first")
        loop = Loop(self.backend)
        self.scheduler = loop.scheduler
        try:
            try:
                yield loop
            finally:
                loop.abandon()
        finally:
            self._streaming.release()

    def task(
        self,
        name: str,
        picture: Picture,
        classes: Iterable[Label],
        recipe: str | Recipe = "released",
        mode: Mode = "both",
    ) -> ImageTask:
        """An image ready for the loop; raises InputError for a bad picture, class, recipe or mode."""
        chosen = self._settled(recipe, mode)
        return ImageTask(name, _pixels(picture), self.class_indices(classes), chosen, mode)

    def _settled(self, recipe: str | Recipe, mode: Mode) -> Recipe:
        """The recipe as this bundle runs it in that mode; raises InputError."""
        checked_mode(mode)
        chosen = self.recipe(recipe)
        if (
            mode == "baseline"
        ):  # the plain CAM is normalised once (method/README.md §1): there is nothing to add up
            chosen = chosen.model_copy(update={"accumulate": "max"})
        return chosen

    def _admit(
        self,
        loop: Loop,
        name: str,
        picture: Picture,
        classes: Iterable[Label],
        recipe: str | Recipe,
        mode: Mode,
    ) -> Result | None:
        """Hand one item to the loop; a Result at once where there is nothing to infer."""
        try:
            task = self.task(name, picture, classes, recipe, mode)
        except InputError as e:
            return Result(name, [], _NO_MAPS, error=e)
        if not task.classes:
            return without_classes(task)
        loop.add(task)
        return None

    def close(self) -> None:
        self.backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_NO_MAPS = np.zeros((0, 0, 0), np.float32)


def result_of(finished: Finished) -> Result:
    """What a caller sees of an image that has left the loop."""
    image, maps = finished.image, finished.maps
    if maps is None:
        return Result(image.id, image.classes, _NO_MAPS, error=finished.error)
    if image.trace is not None:
        image.trace.close()
    # Tiles finish in an order that depends on the machine: sorted, equal runs say the same.
    iterations = sorted(image.iterations)
    return Result(image.id, image.classes, maps, iterations, image.pixels, trace=image.trace)


def without_classes(task: ImageTask) -> Result:
    """The result of an image of no class: no maps, and nothing to infer."""
    empty = np.zeros((0, task.height, task.width), np.float32)
    return Result(task.id, [], empty, pixels=task.pixels, trace=task.trace)


def _pixels(image: Picture) -> NDArray[np.uint8]:
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image))
    if not isinstance(image, np.ndarray):
        raise InputError(f"a picture is H×W×3 uint8 RGB or a path, not {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(f"a picture is H×W×3 uint8 RGB, not {image.dtype} {image.shape}")
    return image
