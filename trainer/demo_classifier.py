"""Re-makes the classifier of `infercam demo`: `python -m infercam.trainer.demo_classifier -o DIR`.

A small convolutional classifier (stride 8, global average pooling, linear layer without bias) is trained on
the demo's generated scenes with the multi-label soft-margin loss. It sees image-level labels only; masks and
marks are never read. Augmentation: mirror, crop, and scales, because the response maps are taken at several
(method.md §1); how creatures look at double scale it learns from those that are large to begin with. Seeded;
a run takes some minutes on two CPU cores, and differs in the last digits between machines and versions of
torch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import typer
from infercam.engine.bundle import Bundle
from infercam.engine.demo.scenes import CLASS_NAMES, SIZE, scene
from infercam.engine.errors import InfercamError
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

TRAIN_SEED = 1
VALIDATION_SEED = 2
"""First seed of training and validation scenes; `infercam demo` draws its own from others."""

SCALES = (0.5, 0.7, 1.0, 1.4)
SCALE_SHARES = (0.3, 0.3, 0.25, 0.15)
CROP = 0.85
"""Share of each side that a training crop keeps: large enough that few labels lose their object."""


@dataclass(frozen=True)
class Settings:
    """How long and on how much to train; the defaults made the committed bundle."""

    scenes: int = 3000
    validation: int = 300
    epochs: int = 12
    batch: int = 32
    peak_rate: float = 4e-3
    weight_decay: float = 0.05
    seed: int = 0


class DemoNet(nn.Module):
    """Seven 3×3 convolutions, output stride 8, then global average pooling and a linear layer.

    Input N×3×H×W, normalised with MEAN and STD; output N×C scores.
    """

    # out channels, stride, dilation
    LAYERS = ((16, 2, 1), (32, 2, 1), (32, 1, 1), (48, 2, 1), (48, 1, 1), (64, 1, 1), (96, 1, 2))

    def __init__(self, classes: int = len(CLASS_NAMES)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        width = 3
        for out, stride, dilation in self.LAYERS:
            conv = nn.Conv2d(width, out, 3, stride, padding=dilation, dilation=dilation, bias=False)
            blocks += [conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            width = out
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.pool(self.features(image)).flatten(1))
        return scores


@dataclass(frozen=True)
class LabelledScenes:
    """images: N×H×W×3 uint8; labels: N×C float32, 1 where the class is in the image."""

    images: NDArray[np.uint8]
    labels: NDArray[np.float32]


def draw_scenes(count: int, seed: int, workers: int = 2) -> LabelledScenes:
    """Scenes (seed, 0) to (seed, count - 1) with their image-level labels."""
    labels = np.zeros((count, len(CLASS_NAMES)), np.float32)
    images = []
    # spawned, not forked: a fork of a process with threads (PyTorch's, ONNX Runtime's) can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for i, (image, classes) in enumerate(
            pool.map(_labelled, [(seed, i) for i in range(count)], chunksize=16)
        ):
            images.append(image)
            labels[i, classes] = 1
    return LabelledScenes(np.stack(images), labels)


def _labelled(seed: Sequence[int]) -> tuple[NDArray[np.uint8], list[int]]:
    cv2.setNumThreads(1)
    drawn = scene(seed)
    return drawn.image, drawn.classes


def batches(data: LabelledScenes, size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of augmented batches: N×3×h×w normalised float32 and N×C labels; h and w differ from batch
    to batch, because a whole batch has one scale."""
    order = rng.permutation(len(data.images))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        scale = float(rng.choice(SCALES, p=SCALE_SHARES))
        pictures = np.stack([augment(data.images[i], scale, rng) for i in chosen])
        yield normalise(pictures), torch.from_numpy(data.labels[chosen])


def augment(image: NDArray[np.uint8], scale: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random crop of the image, mirrored half of the time, resized by `scale`; h×w×3 uint8."""
    height, width = image.shape[:2]
    h, w = round(height * CROP), round(width * CROP)
    y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
    crop = image[y : y + h, x : x + w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    target = (round(w * scale), round(h * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(crop), target, interpolation=how)


def normalise(pictures: NDArray[np.uint8]) -> Tensor:
    """N×h×w×3 uint8 to N×3×h×w float32."""
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
    return x.sub_(torch.tensor(MEAN).view(3, 1, 1)).div_(torch.tensor(STD).view(3, 1, 1))


def train(
    data: LabelledScenes, settings: Settings, report: Callable[[str], None] = lambda line: None
) -> DemoNet:
    """Train a DemoNet from random weights; `report` gets a line an epoch."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    net = DemoNet().train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(net.parameters(), settings.peak_rate, weight_decay=settings.weight_decay)
    steps = max(1, settings.epochs * (len(data.images) // settings.batch))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.peak_rate, total_steps=steps)
    for epoch in range(settings.epochs):
        start, losses = time.monotonic(), []
        for images, labels in batches(data, settings.batch, rng):
            scores = net(images.contiguous(memory_format=torch.channels_last))
            loss = F.multilabel_soft_margin_loss(scores, labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        took = time.monotonic() - start
        report(f"epoch {epoch + 1}/{settings.epochs}: loss {np.mean(losses):.4f}, {took:.0f} s")
    return net.eval()


@torch.no_grad()
def predict(net: DemoNet, images: NDArray[np.uint8], batch: int = 32) -> NDArray[np.float32]:
    """Scores (N, C) of images N×H×W×3."""
    parts = [net(normalise(images[i : i + batch])).numpy() for i in range(0, len(images), batch)]
    return np.concatenate(parts)


def average_precision(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Average precision of each class: scores and labels N×C to C; NaN for a class that never occurs."""
    result = np.full(labels.shape[1], np.nan)
    for c in range(labels.shape[1]):
        hit = labels[np.argsort(-scores[:, c], kind="stable"), c]
        if hit.any():
            precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
            result[c] = float((precision * hit).sum() / hit.sum())
    return result


def folded(net: DemoNet) -> DemoNet:
    """A copy in evaluation mode with every BatchNorm folded into its convolution."""
    copied = copy.deepcopy(net).eval()
    layers: list[nn.Module] = []
    for layer in copied.features:
        if isinstance(layer, nn.BatchNorm2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        else:
            layers.append(layer)
    copied.features = nn.Sequential(*layers)
    return copied.to(memory_format=torch.contiguous_format)


def export(
    net: DemoNet, out: Path, settings: Settings, ap: NDArray[np.float64], images: Sequence[NDArray[np.uint8]]
) -> Bundle:
    """Write the bundle, verified on `images`; how it was trained and its average precision are recorded in
    the manifest. Raises ExportError, MissingExtra."""
    from infercam.export.from_torch import from_torch

    source = {
        "command": "python -m infercam.trainer.demo_classifier",
        "data": "scenes of infercam.engine.demo.scenes, image-level labels only",
        "train_seed": TRAIN_SEED,
        "validation_seed": VALIDATION_SEED,
        "settings": asdict(settings),
        "validation_ap": {name: round(float(v), 4) for name, v in zip(CLASS_NAMES, ap, strict=True)},
        "validation_map": round(float(np.nanmean(ap)), 4),
    }
    return from_torch(
        folded(net),
        out,
        classes=CLASS_NAMES,
        example_size=SIZE,
        mean=MEAN,
        std=STD,
        name="infercam demo classifier",
        source=source,
        images=images,
        overwrite=True,
    )


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="Bundle to write (a folder).")],
    scenes: Annotated[
        int, typer.Option(min=32, help="Training scenes; 138 KB of memory each.")
    ] = Settings.scenes,
    validation: Annotated[int, typer.Option(min=1)] = Settings.validation,
    epochs: Annotated[int, typer.Option(min=1)] = Settings.epochs,
    batch: Annotated[int, typer.Option(min=1)] = Settings.batch,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = Settings.seed,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Train the demo's classifier on generated scenes and write its bundle."""
    settings = Settings(
        scenes=scenes, validation=validation, epochs=epochs, batch=min(batch, scenes), seed=seed
    )
    torch.set_num_threads(threads)
    typer.echo(f"drawing {scenes} training and {validation} validation scenes")
    data = draw_scenes(scenes, TRAIN_SEED, threads)
    held_out = draw_scenes(validation, VALIDATION_SEED, threads)
    net = train(data, settings, typer.echo)
    ap = average_precision(predict(net, held_out.images), held_out.labels)
    for name, value in zip(CLASS_NAMES, ap, strict=True):
        typer.echo(f"  AP {name:15} {100 * value:5.1f}")
    typer.echo(f"  mean AP         {100 * np.nanmean(ap):5.1f} on {validation} validation scenes")
    bundle = export(net, out, settings, ap, list(held_out.images[:2]))
    typer.echo(f"{bundle.graph()}: {bundle.graph().stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    try:
        typer.run(main)
    except InfercamError as e:
        raise SystemExit(f"error: {e}") from None
