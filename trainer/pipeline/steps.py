"""The steps of the pipeline: what each of them reads, writes, and is judged by (method.md §1 to §6).

classify -> maps -> labels -> affinity -> walk -> saliency -> segment -> test
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from infercam.engine.bundle import Bundle, sha256_file
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError
from infercam.engine.common.validation import first_problem
from infercam.engine.evaluation.evaluate import GroundTruth, evaluate_store
from infercam.engine.evaluation.evaluate_labels import evaluate_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.method.recipe import recipe
from infercam.engine.store.mapstore import MapStore
from infercam.trainer.commands.source_options import class_names, open_photos
from infercam.trainer.photos.job import JobSummary
from infercam.trainer.photos.photos import Photos
from infercam.trainer.pipeline.config import CLASSIFY, PipelineConfig
from infercam.trainer.pipeline.pipeline import Figures, Step

if TYPE_CHECKING:
    from infercam.trainer.loop.config import StageConfig

EVAL = "eval"
BEST = "best.ckpt"
Model = TypeVar("Model", bound=BaseModel)


def make_steps(config: PipelineConfig, out: Path) -> list[Step]:
    """The steps that the settings ask for; every table is checked here, before any work.

    Raises InputError for what a step's settings or files lack, and under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a pipeline is one process: use torchrun with the stages' own commands")
    work = _Work(config, Path(out))
    makers = {
        "classify": work.classify,
        "maps": work.maps,
        "labels": work.labels,
        "affinity": work.affinity,
        "walk": work.walk,
        "saliency": work.saliency,
        "segment": work.segment,
        "test": work.test,
    }
    return [make() for name, make in makers.items() if getattr(config, name) is not None]


@dataclass
class _Work:
    """A maker for each step, and what they share: the photos, the classes, the ground truth if there is one."""

    config: PipelineConfig
    out: Path

    # -- the steps -----------------------------------------------------------------------------------------
    def classify(self) -> Step:
        from infercam.trainer.classify.stage import usual_config

        table = self.config.classify
        assert table is not None
        settings = settings_of(usual_config, table.settings(), "classify")
        held_out = self.validation if table.validate_ else None

        def run(out: Path) -> Figures:
            from infercam.trainer.classify.classify import classify

            done = classify(
                self.photos,
                out,
                settings,
                self.classes,
                weights=table.weights,
                random=table.random,
                validation=held_out,
            )
            figures = {"loss": done.loss}
            return figures if done.mean_ap is None else {"mAP": 100 * done.mean_ap, **figures}

        inputs = {"photos": self.photo_hash, "weights": file_hash(table.weights), "classes": self.classes}
        if held_out is not None:
            inputs["validation"] = photo_hash(held_out)
        return Step("classify", run, {**plain(settings), "random": table.random}, inputs)

    def maps(self) -> Step:
        table = self.config.maps
        chosen = recipe(table.recipe, **table.set)
        bundle = table.bundle or self.out / "classify" / "bundle"

        def run(out: Path) -> Figures:
            from infercam.trainer.pipeline.maps import make_maps

            failed = make_maps(bundle, self.config.data, out, chosen, table)
            return {**self._score_maps(out), **failed}

        inputs = {"photos": self.photo_hash}
        if table.bundle is not None:
            inputs["bundle"] = Bundle.load(table.bundle).hash
        settings = {"recipe": chosen.model_dump(mode="json", exclude={"name"}), "mode": table.mode}
        return Step("maps", run, settings, inputs, needs=("classify",) if self.config.classify else ())

    def labels(self) -> Step:
        from infercam.trainer.affinity.settings import AffinityLabelConfig, ThresholdLabelConfig

        table = self.config.labels
        assert table is not None
        given = with_crf_table(table.settings())
        kind = ThresholdLabelConfig if given.get("kind") == "threshold" else AffinityLabelConfig
        settings = checked(kind, given, "labels")

        def run(out: Path) -> Figures:
            from infercam.trainer.affinity.pseudo_labels import make_labels
            from infercam.trainer.commands.labels import pool_size

            store = MapStore.open(self.out / "maps")
            photos, workers = self._having(store.path, ".npz"), pool_size(table.workers, settings.crf)
            failed = failures(make_labels(store, photos, out, settings, workers=workers))
            return {**self._score_labels(out, "labels", self.truth), **failed}

        return Step("labels", run, settings.model_dump(mode="json"), needs=("maps",))

    def affinity(self) -> Step:
        from infercam.trainer.affinity.stage import affinity_config

        table = self.config.affinity
        assert table is not None
        settings = settings_of(affinity_config, table.settings(), "affinity")

        def run(out: Path) -> Figures:
            from infercam.trainer.affinity.stage import train_affinity

            labels = self.out / "labels"
            done = train_affinity(
                self._having(labels, ".png"),
                labels,
                out,
                settings,
                classes=len(self.classes),
                weights=self._weights(table.weights),
                random=table.random,
            )
            return {"pair accuracy": 100 * done.accuracy, "loss": done.loss}

        return self._trained("affinity", run, settings, table, ["labels"])

    def walk(self) -> Step:
        from infercam.trainer.affinity.settings import WalkConfig

        table = self.config.walk
        assert table is not None
        settings = checked(WalkConfig, with_crf_table({**table.settings(), "crf": table.crf}), "walk")

        def run(out: Path) -> Figures:
            from infercam.trainer.affinity.pseudo_labels import make_walk
            from infercam.trainer.commands.labels import pool_size

            store = MapStore.open(self.out / "maps")
            job = make_walk(
                store,
                self._having(store.path, ".npz"),
                self.out / "affinity" / BEST,
                out,
                settings,
                device=table.device,
                threads=table.threads,
                workers=pool_size(table.workers, settings.crf),
            )
            failed = failures(job)
            found = self._score_labels(out / "walk", "walk", self.truth)
            if settings.crf is not None:
                refined = self._score_labels(out / "crf", "walk-crf", self.truth)
                found |= {f"{name} after CRF": value for name, value in refined.items()}
            return {**found, **failed}

        return Step("walk", run, settings.model_dump(mode="json"), needs=("maps", "affinity"))

    def saliency(self) -> Step:
        from infercam.trainer.saliency.saliency import SaliencyConfig

        table = self.config.saliency
        assert table is not None
        settings = checked(SaliencyConfig, table.settings(), "saliency")

        def run(out: Path) -> Figures:
            from infercam.trainer.photos.job import run_job
            from infercam.trainer.saliency.saliency import SaliencyWriter, saliency_file

            writer = SaliencyWriter(self.photos, out, settings, self._weights(table.weights), table.arch)
            job = run_job(
                "saliency",
                self.photos.ids,
                lambda item_id: saliency_file(out, item_id).exists(),
                writer,
                out,
                workers=table.workers,
            )
            return {"photos": float(job.done + job.kept), **failures(job)}

        inputs = {"photos": self.photo_hash, "weights": self._weights_hash(table.weights)}
        key = {**settings.model_dump(mode="json"), "arch": table.arch}
        return Step("saliency", run, key, inputs, needs=self._builds_on(table.weights, []))

    def segment(self) -> Step:
        from infercam.trainer.segment.stage import segment_config

        table = self.config.segment
        assert table is not None
        settings = settings_of(segment_config, table.settings(), "segment")
        needs = ["walk" if self.config.walk else "labels"]
        saliency = table.saliency
        if saliency is None and self.config.saliency is not None and settings.saliency_mode != "none":
            saliency = self.out / "saliency"
            needs.append("saliency")

        def run(out: Path) -> Figures:
            from infercam.trainer.segment.stage import train_segment

            labels = self._pseudo_labels()
            done = train_segment(
                self._having(labels, ".png"),
                labels,
                out,
                settings,
                classes=len(self.classes),
                weights=self._weights(table.weights),
                random=table.random,
                saliency=saliency,
            )
            return {"loss": done.last["loss"]}

        return self._trained("segment", run, settings, table, needs, saliency=folder_hash(table.saliency))

    def test(self) -> Step:
        from infercam.trainer.segment.predict import SegmentTestConfig

        table = self.config.test
        assert table is not None
        settings = checked(SegmentTestConfig, with_crf_table(table.settings()), "test")
        photos = self.validation

        def run(out: Path) -> Figures:
            from infercam.trainer.commands.labels import pool_size
            from infercam.trainer.segment.predict import segment_photos

            job = segment_photos(
                photos,
                self.out / "segment" / BEST,
                out,
                settings,
                class_names=self.classes,
                device=table.device,
                threads=table.threads,
                workers=pool_size(table.workers, settings.crf),
            )
            failed = failures(job)
            truth = ground_truth(photos, self.config.data.val_split or "")
            return {**self._score_labels(out, "test", truth), **failed}

        inputs = {"photos": photo_hash(photos)}
        return Step("test", run, settings.model_dump(mode="json"), inputs, needs=("segment",))

    # -- what is read --------------------------------------------------------------------------------------
    @cached_property
    def classes(self) -> list[str]:
        bundle = self.config.maps.bundle
        if bundle is not None:
            return list(Bundle.load(bundle).manifest.classes)
        return class_names(self.config.data.classes, self.config.data.labels)

    @cached_property
    def photos(self) -> Photos:
        data = self.config.data
        return open_photos(
            voc=data.voc,
            split=data.split,
            images=data.images,
            list_file=data.list,
            root=data.root,
            labels=data.labels,
            classes=self.classes,
            limit=data.limit,
        )

    @cached_property
    def validation(self) -> Photos:
        data = self.config.data
        return open_photos(voc=data.voc, split=data.val_split, labels=data.labels, classes=self.classes)

    @cached_property
    def photo_hash(self) -> str:
        return photo_hash(self.photos)

    @cached_property
    def truth(self) -> GroundTruth | None:
        return ground_truth(self.photos, self.config.data.split or "")

    def _pseudo_labels(self) -> Path:
        """What DeepLab is trained on: the last labels that are made."""
        walk = self.config.walk
        if walk is None:
            return self.out / "labels"
        return self.out / "walk" / ("crf" if walk.crf is not False else "walk")

    def _having(self, folder: Path, suffix: str) -> Photos:
        """The photos that the step before could do; raises InputError where there are none."""
        ids = [i for i in self.photos if (folder / f"{i}{suffix}").is_file()]
        if not ids:
            raise InputError(f"{folder}: has nothing for any of the {len(self.photos)} photos")
        return self.photos.only(ids)

    # -- weights: of a file, or of the pipeline's own classifier --------------------------------------------
    def _weights(self, asked: Path | str | None) -> Path | None:
        return self.out / CLASSIFY / BEST if asked == CLASSIFY else asked  # type: ignore[return-value]

    def _weights_hash(self, asked: Path | str | None) -> str | None:
        return None if asked == CLASSIFY else file_hash(asked)  # type: ignore[arg-type]

    def _builds_on(self, weights: Path | str | None, needs: list[str]) -> tuple[str, ...]:
        return tuple([*needs, CLASSIFY] if weights == CLASSIFY else needs)

    def _trained(
        self,
        name: str,
        run: Callable[[Path], Figures],
        settings: StageConfig,
        table: Any,
        needs: list[str],
        **inputs: Any,
    ) -> Step:
        """A step that trains a network from `table.weights`."""
        inputs |= {"photos": self.photo_hash, "weights": self._weights_hash(table.weights)}
        key = {**plain(settings), "random": table.random}
        return Step(name, run, key, inputs, needs=self._builds_on(table.weights, needs))

    # -- figures -------------------------------------------------------------------------------------------
    def _score_maps(self, store: Path) -> Figures:
        """Best mIoU over the background thresholds, where there are masks."""
        if self.truth is None:
            return {}
        found = evaluate_store(MapStore.open(store), self.truth, missing="skip", workers=None)
        self._keep("maps", found.to_json())
        return {"best mIoU": 100 * found.all.miou, "at threshold": found.all.threshold}

    def _score_labels(self, folder: Path, name: str, truth: GroundTruth | None) -> Figures:
        """mIoU, and the share of the pixels that the labels leave open."""
        if truth is None:
            return {}
        labels = LabelFolder.open(folder)
        found = evaluate_labels(labels, truth, classes=self.classes, missing="skip", workers=None)
        self._keep(name, found.to_json())
        figures = {"mIoU": 100 * found.scores.all.miou}
        return {**figures, "left open": 100 * found.ignored_share} if found.ignored_share else figures

    def _keep(self, name: str, figures: Mapping[str, Any]) -> None:
        """The whole evaluation beside the steps: DIR/eval/NAME.json."""
        with atomic_write(self.out / EVAL / f"{name}.json", "w") as f:
            json.dump(figures, f, indent=1)
            f.write("\n")


def ground_truth(photos: Photos, split: str) -> GroundTruth | None:
    """Masks of photos, to report by; None where not all have one."""
    pairs = []
    for item_id in photos:
        mask = photos.mask_path(item_id)
        if mask is None or not mask.is_file():
            return None
        pairs.append((item_id, mask))
    return GroundTruth(pairs, "masks of the source", split)


# -- fingerprints ----------------------------------------------------------------------------------------------
def photo_hash(photos: Photos) -> str:
    """Of the ids, the files' sizes and the labels; what a photo lacks is for the steps to say."""
    digest = hashlib.sha256()
    for item_id in photos:
        path = photos.path(item_id)
        try:
            labels: list[int] | None = photos.labels(item_id)
        except InputError:
            labels = None
        digest.update(json.dumps([item_id, path.stat().st_size if path.is_file() else None, labels]).encode())
    return digest.hexdigest()


def file_hash(file: Path | None) -> str | None:
    """SHA-256 of a file; raises InputError where there is none."""
    if file is None:
        return None
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    return sha256_file(file)


def folder_hash(folder: Path | None) -> str | None:
    """Of the names and sizes of the PNGs in a folder; raises InputError where there is none."""
    if folder is None:
        return None
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = sorted((f.relative_to(folder).as_posix(), f.stat().st_size) for f in folder.rglob("*.png"))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def plain(config: StageConfig) -> dict[str, Any]:
    """A stage's settings less those that only say where to compute."""
    return config.model_dump(mode="json", exclude=set(config.machine))


# -- tables ----------------------------------------------------------------------------------------------------
def checked(cls: type[Model], given: Mapping[str, Any], table: str) -> Model:
    """A table of settings as its model; raises InputError naming the table and the setting."""
    try:
        return cls.model_validate(given)
    except ValidationError as e:
        raise InputError(f"{table}.{first_problem(e)}") from None


def settings_of(make: Callable[..., Any], given: Mapping[str, Any], table: str) -> Any:
    """A stage's settings by its own function; raises InputError naming the table and the setting."""
    try:
        settings = make(None, **given)
    except InputError as e:
        raise InputError(f"{table}.{str(e).partition(': ')[2]}") from None
    if settings.devices > 1:  # Fabric would start this whole command once for each device
        raise InputError(
            f"{table}.devices: a pipeline trains on one; use torchrun with infercam {table} for more"
        )
    return settings


def with_crf_table(settings: dict[str, Any]) -> dict[str, Any]:
    """`crf = true` is the usual dense CRF, `crf = false` none, a table one with other constants."""
    if isinstance(settings.get("crf"), bool):
        return {**settings, "crf": {} if settings["crf"] else None}
    return settings


def failures(job: JobSummary) -> Figures:
    """`failed`, where photos failed; raises SystemExit for a job that a signal stopped."""
    if job.stopped:
        raise SystemExit(128 + job.stopped)
    return {"failed": float(len(job.failures))} if job.failures else {}
