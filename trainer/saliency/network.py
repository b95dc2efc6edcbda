"""A trained salient-object network from an ONNX file: U²-Net, ISNet (DIS), BiRefNet and others of their kind.

What such a file does not say of itself is settings: how pixels are scaled, and whether its output still needs a
sigmoid. They are found (side, batch, sigmoid), taken from a preset (scaling), or given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.suggest import did_you_mean
from infercam.engine.runners.host_session import Accelerator, HostSession
from infercam.trainer.saliency.settings import SaliencyModelConfig, Three

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]
OUTSIDE = 1e-3  # what rounding may put a sigmoid's output beside 0..1


class Preset(NamedTuple):
    """What the authors of a family feed their networks."""

    side: int
    divide: Literal["max", "255"]
    mean: Three
    std: Three
    names: tuple[str, ...]
    """Files of that family begin with one of these."""


_IMAGENET: tuple[Three, Three] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PRESETS: dict[str, Preset] = {
    "u2net": Preset(320, "max", *_IMAGENET, ("u2net", "silueta")),
    "isnet": Preset(1024, "255", (0.5, 0.5, 0.5), (1.0, 1.0, 1.0), ("isnet", "rmbg-1", "bria-rmbg-1")),
    "birefnet": Preset(1024, "255", *_IMAGENET, ("birefnet", "rmbg-2", "bria-rmbg")),
}


class SaliencyNetwork:
    """A network, ready to be given photos; `settings` has every field decided (but for `preset`).

    Raises InputError for a file that is no such network, and as HostSession.
    """

    def __init__(
        self,
        file: Path,
        config: SaliencyModelConfig | None = None,
        *,
        accelerator: Accelerator = "auto",
        threads: int | None = None,
    ) -> None:
        self._session = HostSession(file, accelerator, threads)
        self._file = file
        asked = config or SaliencyModelConfig()
        self.note = ""
        """One line for the user, where the scaling was guessed."""
        chosen = asked.preset or self._preset(asked)
        preset = PRESETS[chosen]
        batch, _, height, width = self._session.input.shape
        side = asked.side or preset.side
        self.size = (height or side, width or side)
        """Height and width of the input."""
        self.batch = batch
        """Photos that the graph takes at once; None: any number."""
        if asked.side is not None and self.size != (asked.side, asked.side):
            raise InputError(
                f"{shown(file)}: takes {self.size[0]}×{self.size[1]} pixels only; leave --side away"
            )
        self.settings = SaliencyModelConfig(
            preset=chosen,
            side=None if height and width else side,
            divide=asked.divide or preset.divide,
            mean=asked.mean or preset.mean,
            std=asked.std or preset.std,
            output=self._output(asked.output),
            sigmoid=asked.sigmoid,
            stretch=asked.stretch,
        )
        if 0 in (self.settings.std or ()):
            raise InputError("--std: no channel can be divided by 0")
        if asked.sigmoid is None:
            found = self._raw([self.prepare(_trial(*self.size))])[0]
            needed = bool(found.min() < -OUTSIDE or found.max() > 1 + OUTSIDE)
            self.settings = self.settings.model_copy(update={"sigmoid": needed})

    @property
    def providers(self) -> list[str]:
        """ONNX Runtime's, the one that is used first."""
        return self._session.providers

    def prepare(self, image: Pixels) -> Map:
        """H×W×3 uint8 RGB -> 3×h×w float32, as the network takes it.

        Resized by Pillow's antialiased bilinear filter: u2netp reaches 82.4 with it on 100 VOC photos, 80.8 with
        the Lanczos filter that rembg takes.
        """
        height, width = self.size
        small = np.asarray(
            Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR), np.float32
        )
        by = {"max": max(float(small.max()), 1e-6), "255": 255.0, "1": 1.0}[str(self.settings.divide)]
        scaled = (small / np.float32(by) - np.asarray(self.settings.mean, np.float32)) / np.asarray(
            self.settings.std, np.float32
        )
        return np.ascontiguousarray(scaled.transpose(2, 0, 1))

    def maps(self, prepared: Sequence[Map]) -> list[Map]:
        """Saliency h×w float32 in 0..1 of prepared pictures; raises InputError where an answer is no number."""
        out = []
        for found in self._raw(prepared):
            if not np.isfinite(found).all():
                raise InputError("the network's answer is not finite")
            if self.settings.sigmoid:
                found = (1 / (1 + np.exp(-np.clip(found, -50, 50)))).astype(np.float32)
            out.append(_stretched(found) if self.settings.stretch else np.clip(found, 0, 1))
        return out

    def _raw(self, prepared: Sequence[Map]) -> list[Map]:
        assert self.settings.output is not None
        size = self.batch or len(prepared)
        out: list[Map] = []
        for start in range(0, len(prepared), size):
            part = list(prepared[start : start + size])
            x = np.stack([*part, *[np.zeros_like(part[0])] * (size - len(part))])
            found = self._session.run(x, [self.settings.output])[0]
            out += list(self._planes(found, size))[: len(part)]
        return out

    def _planes(self, found: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        """N×h×w of an output N×1×h×w, N×h×w×1 or N×h×w."""
        if found.ndim == 4 and 1 in (found.shape[1], found.shape[3]):
            found = found[:, 0] if found.shape[1] == 1 else found[..., 0]
        if found.ndim != 3 or len(found) != count:
            shape = "×".join(map(str, found.shape))
            raise InputError(
                f"{shown(self._file)}: output {self.settings.output!r} is {shape}, not a map a photo"
            )
        return found

    def _preset(self, asked: SaliencyModelConfig) -> str:
        """By the file's name; u2net's otherwise, and a note unless the scaling is given."""
        name = self._file.stem.lower()
        found = next((key for key, one in PRESETS.items() if name.startswith(one.names)), None)
        if found is None and None in (asked.divide, asked.mean, asked.std):
            self.note = (
                f"{self._file.name}: nothing says how its pixels are scaled; taken as U²-Net's (x / max, ImageNet's "
                f"mean and std); change that with --preset {', '.join(PRESETS)} or --divide, --mean, --std"
            )
        return found or "u2net"

    def _output(self, name: str | None) -> str:
        names = [value.name for value in self._session.outputs]
        if name is None:
            return names[0]
        if name not in names:
            raise InputError(
                f"{shown(self._file)}: no output {name!r}; it has {', '.join(names)}{did_you_mean(name, names)}"
            )
        return name


def enlarged(saliency: Map, height: int, width: int) -> Map:
    """A map h×w as the photo's height×width, bilinear."""
    found: Any = cv2.resize(saliency, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(found, 0, 1)


def _stretched(values: Map) -> Map:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _trial(height: int, width: int) -> Pixels:
    """A picture with an object: what is left of 0..1 in the answer tells a logit from a probability."""
    y, x = np.mgrid[:height, :width]
    inside = (y - 0.5 * height) ** 2 + (x - 0.5 * width) ** 2 < (0.25 * min(height, width)) ** 2
    return np.where(inside[..., None], (200, 60, 40), (70, 120, 70)).astype(np.uint8)


# -- rembg's names ---------------------------------------------------------------------------------------------
def model_file(model: str) -> Path:
    """A file, or one of rembg's models by its name, from the folder that rembg keeps them in; nothing is fetched.

    Raises InputError, which says what is there and how rembg is told to fetch it.
    """
    file = Path(model)
    if file.suffix == ".onnx" or file.is_file() or len(file.parts) > 1:
        return file
    folder = rembg_folder()
    there = folder / f"{model}.onnx"
    if there.is_file():
        return there
    names = sorted(f.stem for f in folder.glob("*.onnx"))
    has = f"has {', '.join(names)}" if names else "has none"
    raise InputError(
        f"--model {model}: neither a file nor a model in rembg's folder {folder}, which {has}"
        f"{did_you_mean(model, names)}; give a file, or have rembg fetch it: rembg d {model}"
    )


def rembg_folder() -> Path:
    """Where rembg keeps its models: $U2NET_HOME, or .u2net below $XDG_DATA_HOME or the home folder."""
    home = os.environ.get("U2NET_HOME") or str(Path(os.environ.get("XDG_DATA_HOME", "~"), ".u2net"))
    return Path(home).expanduser()
