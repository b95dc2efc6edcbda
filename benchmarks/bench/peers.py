"""Other libraries' plain CAM as contestants: pytorch-grad-cam and torch-cam, used as their documentation says.

Both see the same network with the same weights: its trunk, and the linear layer over the pooled features. For such
a head Grad-CAM is the plain CAM up to a factor, so pytorch-grad-cam's GradCAM stands for it (one forward and one
backward pass a class); torch-cam's CAM needs one forward pass in all. Their maps are brought to the picture's size,
normalised by their maximum and written as the plain loop writes its own. With 8 views the same scales and mirror
images are summed as the method's baseline sums them.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from infercam.benchmarks.bench.job import BenchJob, NotMeasured
from infercam.benchmarks.bench.loop_contestant import (
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
"""(1×3×h×w input, classes) -> K×h'×w' maps, zero or more."""


def peer_contestant(job: BenchJob) -> RunningContestant:
    """Raises MissingExtra where the library or torch is absent, NotMeasured where the classifier does not fit."""
    require_torch(job.kind, job.threads)
    make = {"grad-cam": _grad_cam, "torch-cam": _torch_cam}[job.kind]
    bundle = Bundle.load(job.bundle)
    classifier = classifier_of(job, bundle)
    network = _two_parts(classifier.module)
    extract = make(network)
    from infercam.benchmarks.yardsticks.pytorch_loop import LoopClock, PyTorchLoop

    loop = PyTorchLoop(
        network, recipe="corrected", input_spec=classifier.input, all_classes=False, clock=LoopClock()
    )
    shapes: Counter[tuple[int, int]] = Counter()

    def work(pictures: Pictures, out: Path) -> None:
        for picture in pictures.pictures:
            with Image.open(picture.file) as file:
                image = file.convert("RGB")
            views = loop.views(image)[: job.views]
            for view in views:
                shapes[view.shape[-2], view.shape[-1]] += 1
            maps = _maps(
                extract, [v.to(loop.device) for v in views], picture.classes, (image.height, image.width)
            )
            content = dict(zip(picture.classes, maps, strict=True))
            with atomic_write(out / "maps" / f"{picture.id}.npy") as f:
                np.save(f, np.array(content, dtype=object), allow_pickle=True)

    return RunningContestant(
        work, shapes, "PyTorch", lambda: {**torch_details(), "package": _version(job.kind)}
    )


def _maps(
    extract: Extractor, views: list[torch.Tensor], classes: Sequence[int], size: tuple[int, int]
) -> np.ndarray:
    """Summed over the views at the picture's size, divided by the maximum: K×H×W float32. Odd views are mirrored."""
    import torch
    import torch.nn.functional as F

    total = np.zeros((len(classes), *size), np.float32)
    for i, view in enumerate(views):
        small = torch.from_numpy(extract(view, classes))[None]
        full = F.interpolate(small, size, mode="bilinear", align_corners=False)[0].numpy()
        total += np.flip(full, -1) if i % 2 else full
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
        found = [cam(input_tensor=x, targets=[ClassifierOutputTarget(c)])[0] for c in classes]
        return np.stack(found)

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
            found = [cam(class_idx=c, normalized=False)[0][0] for c in classes]
            maps: np.ndarray = torch.relu(torch.stack(found)).cpu().numpy()
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
            return module.features(x)  # type: ignore[no-any-return,operator]

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
