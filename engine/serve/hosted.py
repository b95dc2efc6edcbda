"""The bundles that a server has open, each with an engine of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infercam.engine.api import Engine
from infercam.engine.common.errors import InputError
from infercam.engine.live import LiveEngine
from infercam.engine.method.backend import Preparing
from infercam.engine.method.recipe import MODES, RECIPES, Recipe, recipe

_WARM_SIZE = (96, 128)
Watch = Callable[[str, Preparing], None]
MAPS_SUFFIX = "_maps"


class HostedBundle:
    """A bundle, its engine, and the names under which the Open Inference Protocol knows it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.live = LiveEngine(engine)
        self.name = model_name(engine.manifest.name)

    @property
    def maps_name(self) -> str:
        return self.name + MAPS_SUFFIX

    @property
    def classes(self) -> list[str]:
        return self.engine.manifest.classes

    def warm_up(self, which: Recipe, watch: Watch = lambda name, step: None) -> None:
        """Prepare the shapes of batches that earlier runs of that recipe met, then run one blank picture through:
        what is loaded or compiled when first used is there afterwards."""
        for step in self.engine.preparing(which):
            watch(self.name, step)
        blank = np.full((*_WARM_SIZE, 3), 127, np.uint8)
        self.live.submit("warm-up", blank, [0], which).result()
        self.live.scores(blank).result()

    def predicted(self, scores: NDArray[np.float32], threshold: float) -> list[int]:
        """Classes whose probability passes the threshold."""
        return [int(i) for i in np.flatnonzero(self.engine.probabilities(scores) > threshold)]

    def ranked(self, scores: NDArray[np.float32]) -> list[dict[str, object]]:
        """All classes with logit and probability, best first."""
        probability = self.engine.probabilities(scores)
        return [
            {
                "name": self.classes[i],
                "index": int(i),
                "logit": float(scores[i]),
                "probability": float(probability[i]),
            }
            for i in np.argsort(-scores, kind="stable")
        ]

    def info(self, default_recipe: str) -> dict[str, object]:
        """What a page or a client may choose from."""
        return {
            "name": self.name,
            "classes": self.classes,
            "recipes": list(RECIPES),
            "modes": list(MODES),
            "default_recipe": default_recipe,
        }


class Hosts:
    """All bundles of a server, the first one being the default; closed together."""

    def __init__(self) -> None:
        self._all: dict[str, HostedBundle] = {}
        self._open = ExitStack()

    @classmethod
    def load(
        cls,
        bundles: Iterable[Path],
        default_recipe: str,
        backend: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        watch: Watch = lambda name, step: None,
    ) -> Hosts:
        """Open bundles and warm them up; raises InfercamError where one cannot be served.

        watch: called with a bundle's name as the shapes of its batches are prepared.
        """
        warm = recipe(default_recipe)
        hosts = cls()
        try:
            for path in bundles:
                hosts.add(Engine.load(path, backend, threads, precision)).warm_up(warm, watch)
        except BaseException:
            hosts.close(0)
            raise
        return hosts

    def add(self, engine: Engine) -> HostedBundle:
        """Serve an engine, and close it in the end."""
        self._open.enter_context(engine)
        hosted = HostedBundle(engine)
        taken = {name for h in self._all.values() for name in (h.name, h.maps_name)}
        if taken & {hosted.name, hosted.maps_name}:
            hosted.live.close(drain=False)
            raise InputError(f"two bundles are named '{hosted.name}'; rename one in its manifest")
        self._all[hosted.name] = hosted
        return hosted

    def __iter__(self) -> Iterator[HostedBundle]:
        return iter(self._all.values())

    def get(self, name: str | None) -> HostedBundle | None:
        """The bundle of that name; None: the first."""
        return next(iter(self._all.values())) if name is None else self._all.get(name)

    @property
    def error(self) -> BaseException | None:
        """What ended an engine, if one died."""
        return next((h.live.error for h in self._all.values() if h.live.error), None)

    def close(self, seconds: float) -> bool:
        """Finish what is in flight within that time, drop the rest; returns whether all was finished."""
        finished = [h.live.close(drain=seconds > 0, timeout=seconds) for h in self._all.values()]
        for hosted in self._all.values():
            hosted.engine.remember()
        self._open.close()
        return all(finished)


def model_name(name: str) -> str:
    """A bundle's name as a part of a URL: whatever is no letter, digit, dot, dash or underscore becomes one."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name) or "bundle"
