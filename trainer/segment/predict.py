"""Labels of photos by a trained DeepLab: several scales, mirrored too, then a dense CRF (method/README.md §5)."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from infercam.engine.bundle import sha256_file
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError, shown
from infercam.engine.data import voc
from infercam.engine.evaluation.evaluate import GroundTruth
from infercam.engine.evaluation.evaluate_labels import LabelResult, evaluate_labels
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.trainer.affinity.crf import CrfConfig, check_crf, refine
from infercam.trainer.loop.device import inference_device
from infercam.trainer.networks.deeplab import DeepLab, full_scores, load_deeplab
from infercam.trainer.photos.augment import resize, to_tensor
from infercam.trainer.photos.job import JobSummary, run_job
from infercam.trainer.photos.photos import Photos
from infercam.trainer.segment.settings import SegmentTestConfig

SUBMISSION = Path("results") / "VOC2012" / "Segmentation"
COMPETITION = "comp6_test_cls"
"""comp5: trained on VOC's own photos only; comp6: on others too, as ImageNet weights are."""


def class_probabilities(
    network: DeepLab, image: NDArray[np.uint8], scales: Sequence[float], mirror: bool
) -> NDArray[np.float32]:
    """Mean softmax over the scaled and mirrored views at the photo's own size: C×H×W float32, sums to 1."""
    device = next(network.parameters()).device
    height, width = image.shape[:2]
    total: torch.Tensor | None = None
    with torch.inference_mode():
        for scale in scales:
            view, _ = resize(image, {}, max(1, round(height * scale)), max(1, round(width * scale)))
            batch = to_tensor(view, network.input)[None].to(device)
            if mirror:
                batch = torch.cat([batch, batch.flip(3)])
            found = full_scores(network, batch, network.backbone.output_stride).float()
            found = F.interpolate(found, (height, width), mode="bilinear").softmax(1)
            if mirror:
                found = torch.stack([found[0], found[1].flip(2)])
            total = found.sum(0) if total is None else total + found.sum(0)
    assert total is not None
    return (total / (len(scales) * (1 + mirror))).cpu().numpy()


def segment_photos(
    photos: Photos,
    checkpoint: Path,
    out: Path,
    config: SegmentTestConfig,
    *,
    class_names: Sequence[str] | None = None,
    output_stride: int | None = None,
    device: str = "auto",
    threads: int | None = None,
    workers: int = 0,
) -> JobSummary:
    """A label PNG for every photo into `out` (a label folder, see engine/evaluation/label_folder.py).

    What was made by the same checkpoint with the same settings is kept. workers: processes for the CRF and for
    writing. class_names: of the object classes (default: VOC's, or numbers). output_stride: of published weights.
    Raises InputError or ExportError for the checkpoint, MissingExtra without the CRF's library, StoreError for
    the folder. What concerns one photo is in the summary's failures.
    """
    if config.crf is not None:
        check_crf()
    network = load_deeplab(checkpoint, output_stride).to(inference_device(device, threads)).eval()
    names = list(class_names or _names(network.classes - 1))
    if network.classes != len(names) + 1:
        raise InputError(
            f"{checkpoint}: scores {network.classes - 1} object classes, but there are {len(names)} names"
        )
    settings = {
        "stage": "segment-test",
        "config": config.model_dump(mode="json"),
        "checkpoint": {"file": checkpoint.name, "sha256": sha256_file(checkpoint)},
        "output_stride": network.backbone.output_stride,
    }
    fingerprint = hashlib.sha256(repr(settings).encode()).hexdigest()[:16]
    folder = LabelFolder.create_or_open(out, names, settings)

    def prepare(item_id: str) -> tuple[Any, ...]:
        image = photos.image(item_id)
        scores = class_probabilities(network, image, config.scales, config.mirror)
        present = np.flatnonzero(scores.max((1, 2)) >= config.least_peak)
        return scores[present], present.astype(np.uint8), image if config.crf else None

    return run_job(
        "segment-test",
        photos.ids,
        folder.file,
        _Writer(folder, config.crf, fingerprint),
        out,
        prepare=prepare,
        workers=workers,
        made=lambda item_id: folder.done(item_id, fingerprint),
    )


def _names(classes: int) -> list[str]:
    """VOC's, where there are as many."""
    return voc.CLASSES if classes == len(voc.CLASSES) else [f"class {i + 1}" for i in range(classes)]


@dataclass(frozen=True)
class _Writer:
    """What a process of the pool does with one photo's probabilities K×H×W of the classes `present`."""

    folder: LabelFolder
    crf: CrfConfig | None
    fingerprint: str

    def __call__(
        self,
        item_id: str,
        scores: NDArray[np.float32],
        present: NDArray[np.uint8],
        image: NDArray[np.uint8] | None,
    ) -> None:
        if self.crf is not None:
            assert image is not None
            scores = refine(image, scores, self.crf)
        self.folder.write(item_id, present[scores.argmax(0)], self.fingerprint)


def score_photos(photos: Photos, out: Path, split: str) -> LabelResult | None:
    """The labels in `out` against the photos' own ground truth; None where not every photo has one."""
    pairs = [(i, photos.mask_path(i)) for i in photos.ids]
    there = [(i, file) for i, file in pairs if file is not None and file.is_file()]
    if len(there) < len(pairs):
        return None
    truth = GroundTruth(there, f"VOC masks, {there[0][1].parent}", split)
    return evaluate_labels(LabelFolder.open(out), truth)


def write_submission(photos: Photos, labels: Path, out: Path, competition: str = COMPETITION) -> Path:
    """Labels as VOC's evaluation server takes them: out/results/VOC2012/Segmentation/… of every photo, and all
    of it in out/results.tar.gz, which is returned.

    Raises InputError for photos without a label, StoreError where it cannot be written.
    """
    folder = LabelFolder.open(labels)
    missing = [i for i in photos.ids if i not in folder]
    if missing:
        raise InputError(
            f"{shown(labels)}: {len(missing)} of {len(photos)} photos have no label (first: {shown(missing[0])})"
        )
    inside = SUBMISSION / competition
    archive = out / "results.tar.gz"
    try:
        shutil.rmtree(out / inside, ignore_errors=True)  # of another list
        with atomic_write(archive) as f, tarfile.open(fileobj=f, mode="w:gz") as tar:
            for item_id in photos.ids:
                name = inside / f"{item_id}.png"
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder.file(item_id), out / name)
                tar.add(out / name, arcname=name.as_posix(), filter=_anonymous)
    except OSError as e:
        raise StoreError(f"{shown(archive)}: cannot be written: {e.strerror}") from None
    return archive


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the names and the clock of this machine."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry
