"""What decides an image's maps (its fingerprint), and what a store records of the run that made them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from infercam.engine.api import Engine
from infercam.engine.data.sources import Source
from infercam.engine.method.recipe import Mode, Recipe

MACHINE = frozenset({"threads", "memory_budget", "batch_pixels"})
"""What backends say of the machine and not of the maps: not recorded in stores, which many machines may write."""


class LabelLookup(Protocol):
    """Where an image's classes come from; see labels.load_labels."""

    def lookup(self, id: str) -> list[int]: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Predicted:
    """Labels predicted by the classifier itself: every class whose probability passes `threshold`."""

    threshold: float = 0.5

    def describe(self) -> dict[str, Any]:
        return {"kind": "predict", "threshold": self.threshold}


@dataclass(frozen=True)
class MapSettings:
    """What makes the maps: bundle, recipe as that bundle can run it, backend. Travels between processes."""

    recipe: Recipe
    mode: Mode
    bundle: str
    bundle_hash: str
    classes: list[str]
    backend: dict[str, Any]
    precision: str
    choice: str
    """Why it is this backend and not a better one, in words."""

    @classmethod
    def of(cls, engine: Engine, recipe: Recipe, mode: Mode) -> MapSettings:
        return cls(
            recipe=engine.recipe(recipe),
            mode=mode,
            bundle=engine.manifest.name,
            bundle_hash=engine.bundle.hash,
            classes=engine.manifest.classes,
            backend=dict(engine.backend.describe()),
            precision=engine.backend.precision,
            choice=str(engine.choice),
        )

    def settings(self, labels: LabelLookup | Predicted, source: Source) -> dict[str, Any]:
        """What is recorded; the same on every machine that takes part."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "mode": self.mode,
            "labels": labels.describe(),
            "source": source.describe(),
            "bundle": {"name": self.bundle, "hash": self.bundle_hash},
            "backend": {k: v for k, v in self.backend.items() if k not in MACHINE},
            "infercam": version("infercam"),
        }

    def fingerprint(self, labels: LabelLookup | Predicted, classes: list[int] | None) -> str:
        """What decides one image's maps: recipe, mode, bundle and its classes (or how they are predicted)."""
        key = [self.recipe.fingerprint(self.mode), self.bundle_hash]
        if self.precision not in ("fp32", "tf32"):
            key.append(self.precision)
        if isinstance(labels, Predicted):
            key.append(f"predict {labels.threshold}" + (" on the ladder" if self.recipe.ladder else ""))
        return hashlib.sha256(f"{' '.join(key)} {classes}".encode()).hexdigest()[:16]

    def of_image(self, labels: LabelLookup | Predicted, id: str) -> tuple[list[int] | None, str]:
        """An image's classes (None: the classifier says them) and fingerprint; raises InputError as the labels do."""
        classes = None if isinstance(labels, Predicted) else labels.lookup(id)
        return classes, self.fingerprint(labels, classes)


@dataclass(frozen=True)
class EngineSpec:
    """How another process makes its engine; `bundle` is a path that it has too."""

    bundle: Path
    backend: str = "auto"
    threads: int | None = None
    precision: str | None = None

    @classmethod
    def of(cls, engine: Engine) -> EngineSpec:
        """Another engine like this one."""
        backend = engine.backend
        return cls(engine.bundle.path, backend.name, getattr(backend, "threads", None), backend.precision)

    def load(self) -> Engine:
        return Engine.load(self.bundle, self.backend, self.threads, self.precision)

    def map_settings(self, recipe: Recipe, mode: Mode) -> tuple[MapSettings, int]:
        """What an engine here would make, and how many images it keeps in flight."""
        with self.load() as engine:
            return MapSettings.of(engine, recipe, mode), engine.backend.limits.images
