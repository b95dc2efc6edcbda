"""Loading a CLIP from local files, through transformers or open_clip; nothing is ever downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infercam.engine.bundle import Triple
from infercam.engine.common.environment import environment
from infercam.engine.common.errors import ExportError, MissingExtra
from infercam.export.clip.texts import Encoder
from infercam.export.writing.from_torch import first_line, import_torch

if TYPE_CHECKING:
    from torch import nn

MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
STD: Triple = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's own preprocessing, in 0..1."""


@dataclass(frozen=True)
class Clip:
    """An image encoder N×3×H×W -> N×E and its text encoder."""

    image: nn.Module
    encode: Encoder
    scale: float
    size: tuple[int, int]
    mean: Triple
    std: Triple
    source: dict[str, Any]


def load_clip(model: str, weights: Path | None) -> Clip:
    """A folder as transformers saves one, or the name of an open_clip architecture with its `weights`.

    Raises ExportError where there are no local weights, MissingExtra without the package.
    """
    folder = Path(model)
    # both packages may ask Hugging Face's hub for a tokenizer: it is to stay off the network
    with environment("HF_HUB_OFFLINE", "1"):
        if (folder / "config.json").is_file():
            return _from_transformers(folder)
        if folder.exists():
            raise ExportError(
                f"{folder}: no CLIP (an .onnx file, or a folder with transformers' config.json)"
            )
        if weights is None:
            raise ExportError(
                f"--clip {model}: no such file or folder, and weights are never downloaded: for an open_clip "
                "architecture give its weights with --weights FILE"
            )
        return _from_open_clip(model, weights)


def _require(package: str, extra_name: str) -> None:
    import_torch()
    if find_spec(package) is None:
        raise MissingExtra(extra_name, "clip", "infercam export --clip")


def _from_transformers(folder: Path) -> Clip:
    _require("transformers", "transformers")
    from transformers import AutoTokenizer, CLIPModel

    try:
        model = CLIPModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, attn_implementation="eager"
        ).float()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as e:  # its errors share no base below Exception
        raise ExportError(f"{folder}: transformers cannot load it as a CLIP: {first_line(e)}") from None
    clip = of_transformers(
        model, lambda texts: tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    )
    return replace(clip, **_pixels(folder / "preprocessor_config.json"))


def _pixels(file: Path) -> dict[str, Any]:
    """Mean and standard deviation as the model's preprocessing says, where it does."""
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        found = {k: tuple(map(float, said[f"image_{k}"])) for k in ("mean", "std")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {k: (v[0], v[1], v[2]) for k, v in found.items() if len(v) == 3}


def of_transformers(model: Any, tokenize: Callable[[list[str]], Any]) -> Clip:
    """A transformers.CLIPModel; `tokenize`: texts -> what its text model takes by name."""
    torch = import_torch()

    class Image(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> Any:
            return _tensor(self.model.get_image_features(pixel_values=image))

    def encode(texts: list[str]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(_tensor(model.get_text_features(**tokenize(texts))).float().numpy())

    model.eval()
    side = int(model.config.vision_config.image_size)
    scale = float(model.logit_scale.detach().exp())
    return Clip(Image(), encode, scale, (side, side), MEAN, STD, {"kind": "transformers"})


def _tensor(found: Any) -> Any:
    """What newer versions wrap in an output object."""
    return getattr(found, "pooler_output", found)


def _from_open_clip(name: str, weights: Path) -> Clip:
    _require("open_clip", "open_clip_torch")
    import open_clip

    if not weights.is_file():
        raise ExportError(f"{weights}: no such file")
    if name not in open_clip.list_models():
        raise ExportError(f"--clip {name}: open_clip has no such architecture (see open_clip.list_models())")
    try:
        model = open_clip.create_model(
            name, pretrained=str(weights), precision="fp32", load_weights_only=True
        )
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as e:
        raise ExportError(f"--clip {name}: open_clip cannot load {weights}: {first_line(e)}") from None
    return of_open_clip(model, tokenizer, name)


def of_open_clip(model: Any, tokenize: Callable[[list[str]], Any], name: str) -> Clip:
    """An open_clip model: `visual`, `encode_text`, `logit_scale`."""
    torch = import_torch()

    def encode(texts: list[str]) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(model.encode_text(tokenize(texts)).float().numpy())

    model.eval()
    side = getattr(model.visual, "image_size", 224)
    size = (int(side[0]), int(side[1])) if isinstance(side, (tuple, list)) else (int(side), int(side))
    mean, std = (
        tuple(getattr(model.visual, n, None) or d) for n, d in (("image_mean", MEAN), ("image_std", STD))
    )
    scale = float(model.logit_scale.detach().exp())
    return Clip(model.visual, encode, scale, size, mean, std, {"kind": "open_clip", "architecture": name})
