"""A run from its settings: what `infercam run` does, for Python users too.

from infercam.engine.inputs import SourceSettings
from infercam.engine.run.start import RunSettings, open_run

with open_run(Path("bundle"), "maps", SourceSettings(images="photos"), RunSettings(labels="predict")) as job:
    print(job())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from infercam.engine.api import Engine
from infercam.engine.backends import ON_CPU
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.options import numbers, option, settings_text
from infercam.engine.inputs import SourceSettings
from infercam.engine.method.recipe import Recipe, checked_mode, recipe
from infercam.engine.run.run import LabelLookup, Run, Summary, Watcher
from infercam.engine.run.settings import EngineSpec, Predicted
from infercam.engine.run.shards import Shard
from infercam.engine.store.output_folder import check_output

if TYPE_CHECKING:
    from infercam.engine.data.sources import Source
    from infercam.engine.run.ray_pool import PoolOptions
    from infercam.engine.run.ray_run import ClusterRun

_FROZEN = ConfigDict(frozen=True, extra="forbid")


class RecipeSettings(BaseModel):
    """A recipe by its name, with constants that are not its own; see method/recipe.py."""

    model_config = _FROZEN

    recipe: str = option("released", "paper, released, corrected, fast, best.")
    mode: str = option("both", "baseline, split, erase, both.")
    scales: str | None = option(None, "Scales of the first iteration, for example 1,0.5,1.5,2.")
    mirror: bool | None = option(None, "Mirror the first iteration's views too.")
    threshold: float | None = option(None, "Normalised response that is erased.")
    stop_share: float | None = option(None, "Stop below this newly erased share.")
    iterations: int | None = option(None, "At most this many on a tile.")
    buffer: str | None = option(None, "Pixels past the split line: one class,two.")
    accumulate: str | None = option(None, "max or sum.")
    ladder: bool | None = option(
        None, "Infer views at few sizes, so that a GPU prepares few shapes (always in fast and best)."
    )
    change: list[str] | None = option(
        None, "Any other constant of the recipe, as NAME=JSON; may be repeated.", "--set"
    )

    def build(self) -> Recipe:
        """Raises InputError for an unknown recipe, or a constant that it cannot have."""
        changes, base = self._changes(), recipe(self.recipe)
        if "scales" in changes or "mirror" in changes:
            views = base.views.model_dump()
            views |= {k: changes.pop(k) for k in ("scales", "mirror") if k in changes}
            changes["views"] = views
        return recipe(base, **changes)

    def _changes(self) -> dict[str, Any]:
        """The constants that are changed, by their names in the recipe."""
        out: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("mirror", "threshold", "stop_share", "iterations", "accumulate", "ladder")
        }
        out["scales"] = self.scales and numbers("--scales", self.scales)
        if self.buffer is not None:
            pixels = numbers("--buffer", self.buffer)
            if len(pixels) > 2:
                raise InputError(f"--buffer {self.buffer}: write one number, or two: for one class, for two")
            out |= {"buffer_one": pixels[0], "buffer_two": pixels[-1]}
        out |= settings_text(self.change)
        return {k: v for k, v in out.items() if v is not None}


class LabelSettings(BaseModel):
    """Where the images' classes come from."""

    model_config = _FROZEN

    labels: str | None = option(
        None, "Labels: .json, .csv, .npy (psa), folder of VOC XML, `voc-xml`, `coco`, or `predict`."
    )
    score_threshold: float = option(0.5, "With `--labels predict`: least probability of a class.", ge=0, le=1)

    def open(self, classes: list[str], source: SourceSettings) -> LabelLookup | Predicted:
        """The labels as indices of `classes`; raises InputError where there are none, or bad ones."""
        if self.labels == "predict":
            return Predicted(self.score_threshold)
        if self.labels is None:
            raise InputError(
                "give the images' classes with --labels FILE, or let the classifier say: --labels predict"
            )
        return source.labels(self.labels, classes)


class OutputSettings(BaseModel):
    """What is written of an image, and which images are read."""

    model_config = _FROZEN

    fmt: str = option("npz", "npz, or psa or irn for those tools.", "--format")
    dtype: str | None = option(None, "uint8 (default) or float16; npz only.")
    heatmaps: Path | None = option(None, "Also write overlay pictures here.")


class EngineSettings(BaseModel):
    """Which engine makes the maps."""

    model_config = _FROZEN

    backend: str = option(
        "auto",
        "auto (the best that works here), tensorrt, tensorrt-rtx, ort-cuda, ort-tensorrt, openvino or cpu.",
    )
    precision: str | None = option(
        None, "Which graph or plan of the bundle: fp32, tf32, fp16, bf16, int8, fp8."
    )
    threads: int | None = option(None, "Worker threads (default: all cores).", ge=1)


class ShareSettings(BaseModel):
    """Which images, and on how many machines."""

    model_config = _FROZEN

    max_pixels: int = option(4_000_000, "Refuse larger images.", ge=1)
    shard: str | None = option(None, "Only share I of N of the images, as I/N; all N write one store.")
    cluster: str | None = option(None, "ray: on the workers of a Ray cluster.")
    workers: int | None = option(None, "With --cluster: how many (default: all).", ge=1)
    cpus_per_worker: int | None = option(None, "With --cluster: cores of a worker.", ge=1)
    gpus_per_worker: float | None = option(None, "With --cluster: GPUs of a worker.", ge=0)
    address: str | None = option(
        None, "With --cluster: a running one (host:port, auto); without: on this machine."
    )

    def part(self) -> Shard | None:
        return Shard.parse(self.shard) if self.shard else None

    def pool(self) -> PoolOptions | None:
        """The workers that are asked for; None: this process does the work. Raises InputError."""
        given = {
            "--workers": self.workers,
            "--cpus-per-worker": self.cpus_per_worker,
            "--gpus-per-worker": self.gpus_per_worker,
            "--address": self.address,
        }
        if self.cluster is None:
            for name, value in given.items():
                if value is not None:
                    raise InputError(f"{name}: needs --cluster ray")
            return None
        if self.cluster != "ray":
            raise InputError(f"no cluster {self.cluster!r}; there is: ray (without it, see --shard)")
        from infercam.engine.run.ray_pool import PoolOptions

        return PoolOptions(self.workers, self.cpus_per_worker, self.gpus_per_worker, self.address)


class RunSettings(ShareSettings, EngineSettings, OutputSettings, RecipeSettings, LabelSettings):
    """All that a run is told beside its bundle, its images and its store."""


WITHOUT_LADDER = (
    "note: exact view sizes are about 16 shapes an image, and a GPU takes 50 to 1,400 ms to prepare each (measured "
    "on an H100): --ladder infers at few sizes"
)


@contextmanager
def open_run(
    bundle: Path,
    out: str,
    images: SourceSettings,
    settings: RunSettings,
    *,
    say: Callable[[str], None] = lambda line: None,
    watching: Callable[[int], Watcher] | None = None,
) -> Iterator[Run | ClusterRun]:
    """A run that is ready to be called; its engine or cluster ends with the block.

    say: gets lines for the user: notes on the source, the cluster, the backend. watching: gets the number of images
    once it is known, and returns what is called as the run goes on. Raises InputError, BundleError, BackendError,
    MissingExtra or StoreError for what cannot be used.
    """
    pool, part = settings.pool(), settings.part()
    chosen, mode = settings.build(), checked_mode(settings.mode)
    source = images.open()
    for note in source.notes:
        say(f"note: {note}")
    check_output(out, source.ends(), [bundle, settings.labels])
    if settings.heatmaps is not None:
        check_output(settings.heatmaps, source.ends(), [bundle, settings.labels], "--heatmaps")
    loaded = Bundle.load(bundle)
    labels = settings.open(loaded.manifest.classes, images)
    for note in getattr(labels, "notes", ()):
        say(f"note: {note}")
    how: dict[str, Any] = {
        "recipe": chosen,
        "mode": mode,
        "fmt": settings.fmt,
        "dtype": settings.dtype or ("uint8" if settings.fmt == "npz" else "float32"),
        "heatmaps": settings.heatmaps,
        "max_pixels": settings.max_pixels,
        "shard": part,
        "watch": watching(len(part.of(source) if part else source)) if watching else None,
    }
    with ExitStack() as opened:
        job: Run | ClusterRun
        if pool is None:
            engine = opened.enter_context(
                Engine.load(loaded, settings.backend, settings.threads, settings.precision)
            )
            job = Run(engine, source, labels, out, **how)
        else:
            cluster = _on_cluster(pool, bundle, settings, source, labels, out, say, how)
            job = opened.enter_context(cluster)
        say(f"backend: {job.map_settings.precision} on {job.map_settings.choice}")
        if (fixed := loaded.manifest.input.fixed_size) is not None:
            say(_of_one_size(fixed, job.map_settings.recipe.windows))
        if job.map_settings.backend.get("backend") not in ON_CPU and not chosen.ladder:
            say(WITHOUT_LADDER)
        yield job


def _of_one_size(fixed: tuple[int, int], windows: bool) -> str:
    only = f"note: the network takes {fixed[0]}x{fixed[1]} pixels only"
    if windows:
        return f"{only}: larger views in overlapping windows (--set windows=false: all stretched to one, far cheaper)"
    return f"{only}: every picture is stretched to one view"


def finish(job: Run | ClusterRun) -> Summary:
    """Do the run; a store that cannot be written ends it with a StoreError that says what was saved."""
    try:
        return job()
    except StoreError as e:
        s = job.summary
        raise StoreError(
            f"{e}; stopped with {s.done + s.kept} of {s.images} images done: mend that and run the same "
            "command again"
        ) from None


@contextmanager
def _on_cluster(
    asked: PoolOptions,
    bundle: Path,
    settings: EngineSettings,
    source: Source,
    labels: LabelLookup | Predicted,
    out: str,
    say: Callable[[str], None],
    how: dict[str, Any],
) -> Iterator[ClusterRun]:
    from infercam.engine.run.ray_pool import started
    from infercam.engine.run.ray_run import ClusterRun

    with started(asked) as pool:
        spec = EngineSpec(
            bundle.absolute(), settings.backend, settings.threads or pool.cpus, settings.precision
        )
        say(f"cluster: {pool.workers} workers of {pool.cpus} cores and {pool.gpus:g} GPUs")
        yield ClusterRun(pool, spec, source, labels, out, say=say, **how)
