"""The yardstick: what the paper's released code does, as a plain PyTorch loop, one image at a time.

Two passes over the images, as in the released code, each reading its input from disk and writing its
result to disk: baseline CAMs (method/README.md §1); then, from the saved CAMs, centres of mass, split, iterative
erasing in every tile, unite (method/README.md §2, §3). It is meant to be neither slower nor faster than that code
on one device. What that code does, and the project's engine saves:

- every view runs through the network alone (batch 1), the mirrored copy too;
- all C class maps, not the present ones alone, are upsampled to full size for every view, carried to NumPy,
  multiplied by the labels, stacked, summed and normalised, in every iteration;
- an image of three or more classes is not split, but inferred four times over as four equal tiles;
- a tile's map is accumulated over all C classes in float64; the mask is resized anew for every view;
- maps are written as uncompressed float32 pickles.

What that code does besides, and this loop leaves out because it is no part of the method's cost: tiles
encoded as JPEG between the two passes, all views of the whole image prepared in the second pass and never
used, heat maps. Its loader processes and its thread per view need spare cores or several GPUs; on a CPU
the convolutions already use every core, so views run one after the other here.

    python -m infercam.benchmarks.yardsticks.pytorch_loop --voc ROOT --split val --limit 20 --labels labels.json \\
        --arch mobilenetv2 --weights FILE --recipe released
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import nn

from infercam.benchmarks.common import run_command
from infercam.engine.bundle import InputSpec
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError

if TYPE_CHECKING:
    from infercam.export.archs import Classifier

SCALES = (1.0, 0.5, 1.5, 2.0)
EPSILON = 1e-5
THRESHOLD = 0.7
STOP_SHARE = 0.02
ITERATIONS = 5
BUFFER = {1: 10, 2: 20}  # pixels past the split line, by number of classes
RECIPES = ("released", "corrected")
MODES = ("baseline", "split", "erase", "both")

Box = tuple[int, int, int, int]  # top, left, bottom, right
Maps = dict[int, np.ndarray]  # class index -> H×W map, as psa saves them


class LoopClock:
    """Seconds spent in each named stage, and counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


class PyTorchLoop:
    """The released loop around one classifier; see the module's docstring."""

    def __init__(
        self, module: nn.Module, *, recipe: str, input_spec: InputSpec, all_classes: bool, clock: LoopClock
    ) -> None:
        self.module = module
        self.device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.quirks = recipe == "released"
        self.spec = input_spec
        self.all_classes = all_classes
        self.clock = clock

    def baseline(self, picture: Image.Image, label: np.ndarray) -> np.ndarray:
        """Normalised multi-scale, flipped CAM: C×H×W float32, zero for absent classes (§1)."""
        return self.cam(self.views(picture), (picture.height, picture.width), label)

    def views(self, picture: Image.Image) -> list[torch.Tensor]:
        """Eight 1×3×h×w inputs: each scale, followed by its mirror image."""
        views = []
        with self.clock("resize"):
            for scale in SCALES:
                size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
                pixels = np.asarray(picture.resize(size, resample=Image.Resampling.BICUBIC))
                array = self.normalise(pixels).transpose(2, 0, 1)
                views.append(torch.from_numpy(np.ascontiguousarray(array))[None])
                views.append(torch.from_numpy(np.flip(array, -1).copy())[None])
        return views

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """H×W×3 uint8 -> float32, channel by channel as psa does."""
        out = np.empty(pixels.shape, np.float32)
        for c in range(3):
            source = pixels[..., c if self.spec.colour == "RGB" else 2 - c]
            out[..., c] = (source * self.spec.scale - self.spec.mean[c]) / self.spec.std[c]
        return out

    def cam(self, views: Sequence[torch.Tensor], size: tuple[int, int], label: np.ndarray) -> np.ndarray:
        """Sum over the views at `size`, each class divided by (its maximum + 1e-5): C×H×W float32."""
        present = np.flatnonzero(label > EPSILON)
        maps = []
        for i, view in enumerate(views):
            with self.clock("network"):
                small = self.module.forward_cam(view.to(self.device))  # type: ignore[operator]
            self.clock.counts["network_pixels"] += view.shape[-2] * view.shape[-1]
            with self.clock("upsample"):
                if not self.all_classes:
                    small = small[:, present]
                full = F.interpolate(small, size, mode="bilinear", align_corners=False)[0].cpu().numpy()
                if self.all_classes:
                    full = full * label[:, None, None]
                maps.append(np.flip(full, axis=-1) if i % 2 else full)
        with self.clock("normalise"):
            total = np.sum(maps, axis=0)
            normal = total / (np.max(total, (1, 2), keepdims=True) + EPSILON)
            if self.all_classes:
                return np.asarray(normal)
            out = np.zeros((len(label), *size), np.float32)
            out[present] = normal
            return out

    def infer_tile(self, tile: Image.Image, label: np.ndarray, iterations: int) -> np.ndarray:
        """Iterative erasing in one tile (§3): the accumulated maps, C×h×w."""
        size = (tile.height, tile.width)
        views = self.views(tile)
        inputs: Sequence[torch.Tensor] = views
        accumulated = np.zeros((len(label), *size))
        last_left = np.ones(size)
        for _ in range(iterations):
            normal = self.cam(inputs, size, label)
            with self.clock("mask"):
                accumulated = np.max(np.stack((accumulated, normal), axis=3), axis=3)
                left = (np.max(accumulated, axis=0) < THRESHOLD) * 1
                newly = (np.sum(last_left) - np.sum(left)) / (size[0] * size[1])
                last_left = left
            self.clock.counts["iterations"] += 1
            if newly < STOP_SHARE:
                break
            with self.clock("mask"):
                inputs = self.erase(views, torch.from_numpy(left)[None, None].float())
        return accumulated

    def erase(self, views: Sequence[torch.Tensor], left: torch.Tensor) -> list[torch.Tensor]:
        """The views with the mean colour of each where nothing is left (§3 step 1).

        `released`: the mask is resized from the previous view's, and never mirrored. `corrected`: from the
        full one, and mirrored with the mirrored copies.
        """
        out, mask = [], left
        for i, view in enumerate(views):
            mask = F.interpolate(mask if self.quirks else left, view.shape[-2:])
            if i % 2 and not self.quirks:
                mask = mask.flip(-1)
            mean = view.mean(dim=(2, 3), keepdim=True) * torch.ones_like(view)
            out.append((mask * view + (1 - mask) * mean).float())
        return out

    def unite(self, picture: Image.Image, boxes: Sequence[Box], label: np.ndarray, mode: str) -> Maps:
        """Maximum over the tiles' maps, each pasted at its place on zeros (§2)."""
        present = np.flatnonzero(label > EPSILON)
        canvas = np.zeros((len(boxes), len(present), picture.height, picture.width))
        for i, (top, left, bottom, right) in enumerate(boxes):
            tile = picture.crop((left, top, right, bottom))
            result = self.infer_tile(tile, label, 1 if mode == "split" else ITERATIONS)
            with self.clock("unite"):
                canvas[i, :, top:bottom, left:right] = result[present]
            self.clock.counts["tiles"] += 1
        with self.clock("unite"):
            return dict(zip(present.tolist(), np.max(canvas, axis=0), strict=True))


def centre_of_mass(cam: np.ndarray) -> tuple[int, int]:
    """(y, x) of an H×W map, truncated; the image's centre for an all-zero map (§2)."""
    weight = cam.astype(np.float64)
    total = weight.sum()
    height, width = cam.shape
    if not total > 0:
        return int(height / 2), int(width / 2)
    y = (weight * np.arange(height)[:, None]).sum() / total
    x = (weight * np.arange(width)[None]).sum() / total
    return int(y), int(x)


def split(height: int, width: int, centres: Sequence[tuple[int, int]]) -> list[Box]:
    """The four tiles of the released code; for three or more classes, four times the whole image (§2)."""
    if len(centres) not in BUFFER:
        return [(0, 0, height, width)] * 4
    buffer = BUFFER[len(centres)]
    ys, xs = zip(*centres, strict=True)
    bottom, right = min(height, max(ys) + buffer), min(width, max(xs) + buffer)
    top, left = max(0, min(ys) - buffer), max(0, min(xs) - buffer)
    return [
        (0, 0, bottom, right),
        (0, left, bottom, width),
        (top, 0, height, right),
        (top, left, height, width),
    ]


def run(
    module: nn.Module,
    items: Sequence[tuple[str, Path]],
    labels: Mapping[str, Sequence[int]],
    out_dir: str | Path,
    recipe: str = "released",
    mode: str = "both",
    save_all_classes_upsample: bool = True,
    *,
    classes: int = 20,
    input_spec: InputSpec | None = None,
) -> dict[str, Any]:
    """Run the loop and return what it took.

    module: has `forward_cam`: 1×3×h×w float32 (as `input_spec` says) -> 1×C×h'×w' after ReLU.
    items: (id, image file). labels: id -> indices of its classes.
    out_dir: gets `cam/ID.npy` (baseline) and, but for mode "baseline", `maps/ID.npy`; each a pickled
    {class index: H×W array} as psa writes it.
    save_all_classes_upsample: False upsamples only the present classes (a saving the released code lacks).

    Returns {"seconds", "seconds_per_image", "images", "tiles", "iterations", "network_pixels",
    "stages": {stage: seconds}, "threads", …}; reading and writing are inside the seconds.
    Raises InputError for an unknown recipe or mode.
    """
    if recipe not in RECIPES or mode not in MODES:
        raise InputError(f"recipe is one of {', '.join(RECIPES)}, mode one of {', '.join(MODES)}")
    out = Path(out_dir)
    spec = input_spec or InputSpec()
    clock = LoopClock()
    loop = PyTorchLoop(
        module, recipe=recipe, input_spec=spec, all_classes=save_all_classes_upsample, clock=clock
    )
    was_training = module.training
    module.eval()
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            _baseline_pass(loop, items, labels, out / "cam", classes)
            if mode != "baseline":
                _refining_pass(loop, items, labels, out, classes, mode)
    finally:
        module.train(was_training)
    seconds = time.perf_counter() - start
    stages = {k: round(v, 4) for k, v in clock.seconds.items()}
    stages["other"] = round(seconds - sum(clock.seconds.values()), 4)
    return {
        "recipe": recipe,
        "mode": mode,
        "all_classes": save_all_classes_upsample,
        "images": len(items),
        "seconds": round(seconds, 4),
        "seconds_per_image": round(seconds / max(1, len(items)), 4),
        "stages": stages,
        **{k: clock.counts[k] for k in ("tiles", "iterations", "network_pixels")},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _baseline_pass(
    loop: PyTorchLoop,
    items: Sequence[tuple[str, Path]],
    labels: Mapping[str, Sequence[int]],
    out: Path,
    classes: int,
) -> None:
    for name, path in items:
        picture = _read_picture(loop.clock, path)
        label = one_hot(labels[name], classes)
        cam = loop.baseline(picture, label)
        _write(loop.clock, out / f"{name}.npy", {i: cam[i] for i in sorted(labels[name])})


def _refining_pass(
    loop: PyTorchLoop,
    items: Sequence[tuple[str, Path]],
    labels: Mapping[str, Sequence[int]],
    out: Path,
    classes: int,
    mode: str,
) -> None:
    for name, path in items:
        picture = _read_picture(loop.clock, path)
        boxes = [(0, 0, picture.height, picture.width)]
        if mode != "erase":
            with loop.clock("read"):  # the loop's own file, written a moment ago
                cams = np.load(out / "cam" / f"{name}.npy", allow_pickle=True).item()
            with loop.clock("split"):
                centres = [centre_of_mass(cam) for cam in cams.values()]
                boxes = split(picture.height, picture.width, centres)
        maps = loop.unite(picture, boxes, one_hot(labels[name], classes), mode)
        _write(loop.clock, out / "maps" / f"{name}.npy", maps)


def one_hot(indices: Iterable[int], classes: int) -> np.ndarray:
    """Class indices -> float32 vector of 0 and 1."""
    label = np.zeros(classes, np.float32)
    label[list(indices)] = 1
    return label


def _read_picture(clock: LoopClock, path: Path) -> Image.Image:
    with clock("read"):
        try:
            return Image.open(path).convert("RGB")
        except OSError as e:
            raise InputError(f"{path}: cannot be read as an image: {e}") from None


def _write(clock: LoopClock, path: Path, maps: Maps) -> None:
    with clock("write"), atomic_write(path) as f:
        np.save(f, np.array(maps, dtype=object), allow_pickle=True)


def load_classifier(arch: str, weights: Path) -> Classifier:
    """A classifier from a checkpoint, or from an ONNX file of MobileNetV2 with its weights under our names.

    The latter lets the loop and the engine run exactly the same weights. Such a graph was traced at an even
    size, which froze the padding of its stride-2 convolutions: hence `padding="after"`.
    """
    from infercam.export.archs import MINUS_ONE_TO_ONE, VOC_CLASSES, Classifier, load_arch

    if weights.suffix != ".onnx":
        return load_arch(arch, weights)
    if arch != "mobilenetv2":
        raise InputError(f"{weights}: only mobilenetv2 is read from ONNX; give a checkpoint for {arch}")
    import onnx
    from onnx import numpy_helper

    from infercam.export.archs.mobilenetv2 import MobileNetV2
    from infercam.export.checkpoints import fit

    state = {}
    for tensor in onnx.load(weights).graph.initializer:
        name = tensor.name.removeprefix("n.").removeprefix("base.").replace("fc.", "classifier.")
        if name.rpartition(".")[2] in ("weight", "bias"):
            array = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            state[name] = array.flatten(1) if name == "classifier.weight" else array
    module = MobileNetV2(len(VOC_CLASSES), padding="after")
    fit(module, state, what="mobilenetv2", origin=weights)
    return Classifier(module, VOC_CLASSES, MINUS_ONE_TO_ONE)


def main(
    voc: Annotated[Path, typer.Option(help="VOC tree")],
    weights: Annotated[Path, typer.Option(help="checkpoint (PyTorch, safetensors; ONNX for mobilenetv2)")],
    labels: Annotated[str, typer.Option(help="label file, or voc-xml")],
    split: Annotated[str, typer.Option(help="split of the VOC tree")] = "val",
    arch: Annotated[str, typer.Option(help="resnet38, resnet50 or mobilenetv2")] = "mobilenetv2",
    limit: Annotated[int | None, typer.Option(min=1, help="first so many images")] = None,
    recipe: Annotated[str, typer.Option(help=" or ".join(RECIPES))] = "released",
    mode: Annotated[str, typer.Option(help=", ".join(MODES))] = "both",
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the maps")] = Path("pytorch_loop_out"),
    present_only: Annotated[
        bool, typer.Option("--present-only", help="upsample only present classes (not as released)")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="default: PyTorch's own choice")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="write the timings here as well")] = None,
) -> None:
    """Time the released code's loop in plain PyTorch and print the timings as JSON."""
    from infercam.engine.data.labels import load_labels
    from infercam.engine.data.sources import voc_source

    if threads is not None:
        torch.set_num_threads(threads)
    classifier = load_classifier(arch, weights)
    if classifier.keep_classes is not None:
        raise InputError(f"{weights}: this loop needs a classifier whose outputs are all classes")
    table = load_labels(labels, classifier.classes, voc_root=voc)
    items = [(item.id, item.path) for item in voc_source(voc, split)][:limit]
    timings = run(
        classifier.module,
        items,
        {name: table.lookup(name) for name, _ in items},
        out,
        recipe,
        mode,
        not present_only,
        classes=len(classifier.classes),
        input_spec=classifier.input,
    )
    timings |= {"arch": arch, "weights": weights.name, "split": split}
    if report is not None:
        with atomic_write(report, "w") as f:
            json.dump(timings, f, indent=1)
    typer.echo(json.dumps(timings, indent=1))


if __name__ == "__main__":
    run_command(main)
