"""Other libraries' plain CAM as contestants: pytorch-grad-cam and torch-cam, used as their documentation says.

Both see the same network with the same weights: its trunk, and the linear layer over the pooled features. For such
a head Grad-CAM is the plain CAM up to a factor, so pytorch-grad-cam's GradCAM stands for it (one forward and one
backward pass a class); torch-cam's CAM needs one forward pass in all. Their maps are brought to the picture's size,
normalised by their maximum and written as the plain loop writes its own. With 8 views the same scales and mirror
images are summed as the method's baseline sums them. In batches or not, channels last or not: as was fastest on the
first picture at scale 1, before the clock starts.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from infercam.benchmarks.bench.job import BenchJob, NotMeasured
from infercam.benchmarks.bench.loop_contestant import (
    autocast,
    classifier_of,
    on_best_device,
    require_torch,
    torch_details,
)
from infercam.benchmarks.bench.pictures import Pictures
from infercam.benchmarks.bench.running import RunningContestant
from infercam.engine.bundle import Bundle
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import MissingExtra

if TYPE_CHECKING:
    import torch
    from torch import nn

Extractor = Callable[["torch.Tensor", Sequence[int]], np.ndarray]
"""(N×3×h×w input, classes) -> N×K×h'×w' maps, zero or more, float32."""


def peer_contestant(job: BenchJob) -> RunningContestant:
    """Raises MissingExtra where the library or torch is absent, NotMeasured where the classifier does not fit."""
    require_torch(job.kind, job.threads)
    make = {"grad-cam": _grad_cam, "torch-cam": _torch_cam}[job.kind]
    bundle = Bundle.load(job.bundle)
    classifier = classifier_of(job, bundle)
    network = _two_parts(classifier.module)
    extract = make(network)
    best: Manner | None = None
    from infercam.benchmarks.yardsticks.pytorch_loop import LoopClock, PyTorchLoop

    loop = PyTorchLoop(
        network, recipe="corrected", input_spec=classifier.input, all_classes=False, clock=LoopClock()
    )
    shapes: Counter[tuple[int, int]] = Counter()

    def work(pictures: Pictures, out: Path) -> None:
        nonlocal best
        for picture in pictures.pictures:
            with Image.open(picture.file) as file:
                image = file.convert("RGB")
            views = loop.views(image)[: job.views]
            for view in views:
                shapes[view.shape[-2], view.shape[-1]] += 1
            views, size = [v.to(loop.device) for v in views], (image.height, image.width)

            def maps_in(
                manner: Manner,
                views: list[torch.Tensor] = views,
                classes: Sequence[int] = picture.classes,
                size: tuple[int, int] = size,
            ) -> np.ndarray:
                with autocast(views[0], job.autocast):
                    return _maps(extract, network, views, classes, size, manner)

            if best is None:  # in the run before the clock starts
                best = fastest(partial(maps_in, views=views[:2]), manners(job.views))
            maps = maps_in(best)
            content = dict(zip(picture.classes, maps, strict=True))
            with atomic_write(out / "maps" / f"{picture.id}.npy") as f:
                np.save(f, np.array(content, dtype=object), allow_pickle=True)

    return RunningContestant(
        work,
        shapes,
        "PyTorch",
        lambda: {**torch_details(), "package": _version(job.kind), **(best._asdict() if best else {})},
    )


class Manner(NamedTuple):
    """How a library is called."""

    batched: bool
    """A view and its mirror image at once, as far as its interface takes batches."""
    channels_last: bool


def manners(views: int) -> list[Manner]:
    """Those that may be the best for so many views of a picture."""
    return [Manner(b, c) for b in ((False, True) if views > 1 else (False,)) for c in (False, True)]


def fastest(call: Callable[[Manner], object], every: Sequence[Manner]) -> Manner:
    """The one whose better call of two is the shortest; the first calls, which prepare, are not timed."""
    for manner in every:
        call(manner)
    seconds = dict.fromkeys(every, float("inf"))
    for _ in range(2):
        for manner in every:
            began = time.perf_counter()
            call(manner)
            seconds[manner] = min(seconds[manner], time.perf_counter() - began)
    return min(every, key=lambda manner: seconds[manner])


def _maps(
    extract: Extractor,
    network: Any,
    views: list[torch.Tensor],
    classes: Sequence[int],
    size: tuple[int, int],
    manner: Manner,
) -> np.ndarray:
    """Summed over the views at the picture's size, divided by the maximum: K×H×W float32. Odd views are mirrored."""
    import torch
    import torch.nn.functional as F

    layout = torch.channels_last if manner.channels_last else torch.contiguous_format
    network.to(memory_format=layout)
    at_once = 2 if manner.batched else 1
    total = np.zeros((len(classes), *size), np.float32)
    for start in range(0, len(views), at_once):
        batch = torch.cat(views[start : start + at_once]).contiguous(memory_format=layout)
        small = torch.from_numpy(extract(batch, classes))
        full = F.interpolate(small, size, mode="bilinear", align_corners=False).numpy()
        for i, one in enumerate(full, start):
            total += np.flip(one, -1) if i % 2 else one
    total /= total.max(axis=(1, 2), keepdims=True) + np.float32(1e-5)
    return total


# -- the libraries ---------------------------------------------------------------------------------------------------
def _grad_cam(network: Any) -> Extractor:
    import_torchvision()
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as e:
        raise _missing("pytorch_grad_cam", "grad-cam", e) from None
    cam = GradCAM(model=network, target_layers=[network.trunk])

    def extract(x: torch.Tensor, classes: Sequence[int]) -> np.ndarray:
        found = [cam(input_tensor=x, targets=[ClassifierOutputTarget(c)] * len(x)) for c in classes]
        return np.stack(found, 1)

    return extract


def _torch_cam(network: Any) -> Extractor:
    import torch

    try:
        from torchcam.methods import CAM
    except ImportError as e:
        raise _missing("torchcam", "torchcam", e) from None
    cam = CAM(network, target_layer="trunk", fc_layer="linear")

    def extract(x: torch.Tensor, classes: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            network(x)
            found = [cam(class_idx=c, normalized=False)[0] for c in classes]
            maps: np.ndarray = torch.relu(torch.stack(found, 1)).float().cpu().numpy()
            return maps

    return extract


def _missing(module: str, package: str, error: ImportError) -> Exception:
    """Not installed at all, or installed without something that it needs."""
    if error.name is None or error.name.split(".")[0] == module:
        return MissingExtra(package, "bench", package)
    return NotMeasured(f"{package} cannot be imported: {error}")


def _version(kind: str) -> str:
    from importlib.metadata import version

    return version("grad-cam" if kind == "grad-cam" else "torchcam")


def import_torchvision() -> None:
    """`import torchvision`, also where its compiled part does not load (built for another PyTorch than this one).

    It then registers Python fallbacks for operators that nobody has defined, and raises "operator torchvision::nms
    does not exist". Their schemas are declared here instead, in this process alone: the real torchvision imports,
    and only what calls those operators (detection networks; no CAM does) cannot run.
    """
    import torch

    make: Any = torch.library.Library  # untyped
    library = make("torchvision", "FRAGMENT")
    _declared.append(library)  # what it declares goes when it goes
    for _ in range(8):
        try:
            import torchvision  # noqa: F401
        except RuntimeError as e:
            lacking = re.search(r"operator torchvision::(\w+) does not exist", str(e))
            if lacking is None:
                raise NotMeasured(f"torchvision cannot be imported: {str(e).splitlines()[0]}") from None
            library.define(f"{lacking[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]  # half imported
        except ImportError:
            return  # the library that wants it says so
        else:
            return


_declared: list[Any] = []


def _two_parts(module: nn.Module) -> Any:
    """The classifier as those libraries want it: a trunk that is a layer, and a linear one. Raises NotMeasured."""
    from torch import nn

    head: Any = next(
        (getattr(module, n) for n in ("classifier", "fc8", "linear") if hasattr(module, n)), None
    )
    if head is None or not hasattr(module, "features"):
        raise NotMeasured(f"{type(module).__name__} has no trunk and linear layer to hook")

    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return module.features(x).float()  # type: ignore[no-any-return,operator]

    class TwoParts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = Trunk()
            weight = head.weight.detach().flatten(1)
            self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            self.linear.weight.data.copy_(weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.trunk(x).mean((2, 3)))  # type: ignore[no-any-return]

    return on_best_device(TwoParts()).eval()
