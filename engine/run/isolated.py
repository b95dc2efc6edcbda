"""One image in a process of its own: a runtime may end it (see common/child.py), and the run goes on.

OUT/in-flight.txt    what was in flight (common/in_flight.py); of a shard: in-flight-3-of-8.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from infercam.engine.api import Engine, Result
from infercam.engine.common.cache import cache_file
from infercam.engine.common.child import Child, ChildDied
from infercam.engine.common.errors import BackendError
from infercam.engine.data.sources import read_pixels
from infercam.engine.data.storage import Storage
from infercam.engine.method.recipe import Mode, Recipe
from infercam.engine.run.settings import EngineSpec


def in_flight_file(store: Storage, shard: str = "") -> Path:
    """Where a run notes what is in flight: in its store, or for a remote one in this machine's cache folder."""
    if not store.remote:
        return store.path / (f"in-flight-{shard}.txt" if shard else "in-flight.txt")
    return cache_file("in-flight", f"{store} {shard}".encode(), ".txt")


class KillsItsProcess(BackendError):
    """An image on which the network's runtime ends the process."""

    def __init__(self, how: str) -> None:
        super().__init__(
            f"ends the process that runs the network ({how}) and was left out; too small for this classifier? "
            "A bundle that this version of infercam exports knows the smallest size"
        )


@dataclass(frozen=True)
class IsolatedImage:
    """What the child needs to make one image's maps."""

    engine: EngineSpec
    recipe: Recipe
    mode: Mode
    place: Storage | None
    id: str
    path: Path
    classes: list[int] | None
    """None: those that the classifier predicts above `threshold`."""
    threshold: float
    max_pixels: int


class Isolation:
    """Does images in a child; a context manager, for the child keeps its engine from one to the next."""

    def __init__(self) -> None:
        self._child = Child("infercam.engine.run.isolated:respond")

    def do(self, image: IsolatedImage) -> Result:
        """Raises KillsItsProcess where the child died, and what reading and inferring raise."""
        try:
            result: Result = self._child.ask(image)
        except ChildDied as e:
            raise KillsItsProcess(e.how) from None
        return result

    def __enter__(self) -> Isolation:
        return self

    def __exit__(self, *exception: object) -> None:
        self._child.close()


@cache
def _engine(spec: EngineSpec) -> Engine:
    """The child's."""
    return spec.load()


def respond(image: IsolatedImage) -> Result:
    """In the child: read one image and make its maps."""
    engine = _engine(image.engine)
    pixels = read_pixels(image.place, image.path, image.max_pixels)
    classes = image.classes
    if classes is None:
        classes = engine.predict(pixels, image.threshold, image.recipe.ladder)
    result = next(iter(engine.stream([(image.id, pixels, classes)], image.recipe, image.mode)))
    if result.error is not None:
        raise result.error
    return result
