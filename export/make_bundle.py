"""A bundle from settings: what `infercam export` does, of an ONNX file or of a published architecture."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from infercam.engine.bundle import Bundle, Triple
from infercam.engine.common.errors import ExportError
from infercam.engine.common.options import option
from infercam.engine.data.class_names import read_classes
from infercam.engine.data.images import read_image
from infercam.engine.data.sources import folder_source
from infercam.export.requirements import require_onnx

_SAMPLES = 8


class ExportSettings(BaseModel):
    """How the classifier is read, named and checked; what is None is as the classifier itself says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str | None = option(
        None, "Published architecture instead of MODEL: resnet38, resnet50, mobilenetv2, efficientnet_lite0."
    )
    weights: Path | None = option(None, "With --arch, or --clip of an open_clip name: its checkpoint.")
    clip: str | None = option(
        None,
        "A CLIP instead of MODEL: a folder of transformers', an open_clip name with --weights, or an ONNX image "
        "encoder with --text. Nothing is downloaded.",
    )
    names: Path | None = option(None, "With --clip: the classes to look for, one a line.")
    prompts: Path | None = option(
        None, "With --clip: templates, one a line, averaged; default: a photo of a {}."
    )
    background: Path | None = option(
        None,
        "With --clip: what else may be seen, one a line; competes in the maps, and is dropped from them.",
    )
    text: Path | None = option(
        None,
        "With --clip of an ONNX file: text vectors, .npy or .safetensors, a row a name, the background's last.",
    )
    output_stride: int | None = option(
        None, "With --arch: input pixels per response cell, where it has a choice."
    )
    head: str | None = option(
        None, "With --arch: which linear layer, where there are several (SC-CAM: 20, 200)."
    )
    classes: Path | None = option(
        None, "Class names: a text file, one a line, or JSON. Default: the model's own, or VOC's 20."
    )
    mean: str | None = option(
        None,
        "Subtracted from pixel * scale, for example 0.485,0.456,0.406 (default, but for graphs that normalise by "
        "themselves: there mean 0, std 1).",
    )
    std: str | None = option(None, "Then divided by; default 0.229,0.224,0.225.")
    scale: str | None = option(None, "Multiplies the 0..255 pixel first; default 1/255.")
    colour: str | None = option(None, "Channel order of the input: RGB (default) or BGR.")
    input_name: str | None = option(None, "The picture, of a model with several inputs.")
    output: str | None = option(None, "The logits, of a model with several outputs.")
    size: str | None = option(
        None, "Height and width of the input, HxW; default: any size, else the model's own."
    )
    method: str | None = option(
        None,
        "recipro: of any head, what it answers to one position of its features at a time; default: by the head.",
    )
    attention: bool = option(
        False, "Of a class-token head: the map times the last block's attention from class token to patches."
    )
    affinity: int = option(
        0,
        "Blocks, from the last, whose self-attention among patches becomes an output, for `refine: affinity`.",
        ge=0,
    )
    multi_label: bool | None = option(
        None, "How scores become probabilities; default: as the model does.", "--multi-label/--softmax"
    )
    images: Path | None = option(
        None, f"Folder of images to verify on as well ({_SAMPLES} of them are used)."
    )
    tolerance: float = option(1e-4, "Largest relative difference from the source.", ge=0)
    slim: bool | None = option(None, "Simplify the graph (default: yes).")
    fold_batch_norm: bool = option(
        True,
        "Put batch norms into the layer before them, or make them a scale and a shift (of an architecture PyTorch's "
        "exporter folds those behind convolutions, whatever is said here).",
        "--fold-batch-norm/--no-fold-batch-norm",
    )
    name: str | None = option(None, "Name in the manifest; default: the model file's.")
    overwrite: bool = option(False, "Replace an existing bundle.")


def make_bundle(model: Path | None, out: Path, s: ExportSettings) -> Bundle:
    """Export an ONNX file, or with `arch` a published architecture; verified before it is written.

    Raises ExportError (and InputError for pictures and names), MissingExtra without onnx or torch.
    """
    if [model, s.arch, s.clip].count(None) != 2:
        raise ExportError("give one of MODEL.onnx, --arch NAME --weights FILE and --clip MODEL --names FILE")
    require_onnx()
    common: dict[str, Any] = {
        "classes": _classes(s.classes),
        "multi_label": s.multi_label,
        "images": _images(s.images),
        "tolerance": s.tolerance,
        "fold_batch_norm": s.fold_batch_norm,
        "name": s.name,
        "overwrite": s.overwrite,
    }
    own: dict[str, Any] = {"mean": s.mean, "std": s.std, "scale": s.scale, "colour": s.colour}
    own |= {
        "input-name": s.input_name,
        "output": s.output,
        "slim": s.slim,
        "size": s.size,
        "attention": s.attention or None,
        "method": s.method,
        "affinity": s.affinity or None,
    }
    if s.clip is not None:
        unfit: dict[str, Any] = {"mean": s.mean, "std": s.std, "scale": s.scale, "colour": s.colour}
        unfit |= {"classes": s.classes, "output-stride": s.output_stride, "head": s.head, "slim": s.slim}
        unfit |= {"multi-label": s.multi_label, "attention": s.attention or None, "method": s.method}
        _refuse(unfit, "goes with a classifier, not with --clip")
        return _from_clip(s.clip, out, s, common)
    _refuse(
        {"names": s.names, "prompts": s.prompts, "background": s.background, "text": s.text},
        "goes with --clip",
    )
    theirs = {"weights": s.weights, "output-stride": s.output_stride, "head": s.head}
    if model is not None:
        _refuse(theirs, "goes with --arch, not with an ONNX file")
        options = _onnx_options(s.mean, s.std, s.scale, s.colour) | {"slim": s.slim is not False}
        if s.method not in (None, "recipro"):
            raise ExportError(f"--method is recipro, or left out, not '{s.method}'")
        options |= {"attention": s.attention, "recipro": s.method == "recipro", "affinity": s.affinity}
        options["size"] = None if s.size is None else parse_size(s.size)
        return _from_onnx(model, out, input_name=s.input_name, output=s.output, **options, **common)
    _refuse(own, "goes with an ONNX file; an architecture has its own")
    return _from_arch(str(s.arch), s.weights, out, output_stride=s.output_stride, head=s.head, **common)


def number(text: str) -> float | None:
    """A number, or a quotient of two such as 1/255."""
    try:
        top, _, bottom = text.partition("/")
        value = float(top) / float(bottom) if bottom else float(top)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def parse_triple(text: str, option: str) -> Triple:
    """`a,b,c`, or one number for all three channels; raises ExportError."""
    values = [number(v) for v in text.replace(",", " ").split()]
    numbers = [v for v in values if v is not None]
    if len(numbers) != len(values) or len(numbers) not in (1, 3):
        raise ExportError(f"{option} takes three numbers (R,G,B order of --colour), not '{text}'")
    a, b, c = numbers * 3 if len(numbers) == 1 else numbers
    return (a, b, c)


def parse_size(text: str) -> tuple[int, int]:
    """`HxW`, or one number for both; raises ExportError."""
    sides = re.fullmatch(r"(\d{1,5})(?:[xX×](\d{1,5}))?", text.strip())
    height, width = (int(sides[1]), int(sides[2] or sides[1])) if sides else (0, 0)
    if not height or not width:
        raise ExportError(f"--size takes height x width in pixels, such as 224x224, not '{text}'")
    return height, width


def _refuse(options: dict[str, Any], why: str) -> None:
    given = [f"--{k}" for k, v in options.items() if v is not None]
    if given:
        raise ExportError(f"{given[0]} {why}")


def _onnx_options(mean: str | None, std: str | None, scale: str | None, colour: str | None) -> dict[str, Any]:
    """The options about the input that were given, parsed; what was not keeps export_onnx's default."""
    found: dict[str, Any] = {}
    if mean is not None:
        found["mean"] = parse_triple(mean, "--mean")
    if std is not None:
        found["std"] = parse_triple(std, "--std")
    if scale is not None:
        found["scale"] = number(scale)
        if found["scale"] is None:
            raise ExportError(f"--scale takes a number such as 1/255 or 1, not '{scale}'")
    if colour is not None:
        found["colour"] = colour.upper()
        if found["colour"] not in ("RGB", "BGR"):
            raise ExportError(f"--colour is RGB or BGR, not '{colour}'")
    return found


def _classes(file: Path | None) -> list[str] | None:
    return None if file is None else read_classes(file, repeated=True)


def _images(folder: Path | None) -> list[np.ndarray]:
    """A few pictures spread over the folder; one that cannot be read is an error, as it would be in a run."""
    if folder is None:
        return []
    source = folder_source(folder)
    step = max(1, len(source) // _SAMPLES)
    return [read_image(item.path) for item in source[::step][:_SAMPLES]]


def _from_onnx(model: Path, out: Path, **options: Any) -> Bundle:
    from infercam.export.writing.onnx_source import export_onnx

    return export_onnx(model, out, **options)


def _from_clip(clip: str, out: Path, s: ExportSettings, common: dict[str, Any]) -> Bundle:
    from infercam.export.clip.export import export_clip, export_clip_onnx
    from infercam.export.clip.models import load_clip
    from infercam.export.clip.texts import read_lines, read_prompts

    if s.names is None:
        raise ExportError("--clip needs the classes to look for: --names FILE")
    given: dict[str, Any] = {k: common[k] for k in ("images", "tolerance", "name", "overwrite")}
    given["affinity"] = s.affinity
    given["names"] = read_lines(s.names, "names")
    given["background"] = [] if s.background is None else read_lines(s.background, "names")
    if clip.endswith(".onnx"):
        _refuse({"prompts": s.prompts, "weights": s.weights}, "goes with a CLIP that has its text encoder")
        if s.text is None:
            raise ExportError(
                "an ONNX image encoder needs the names' text vectors: --text FILE (.npy, .safetensors)"
            )
        size = None if s.size is None else parse_size(s.size)
        return export_clip_onnx(
            Path(clip), s.text, out, size=size, output=s.output, input_name=s.input_name, **given
        )
    own = {"text": s.text, "size": s.size, "output": s.output, "input-name": s.input_name}
    _refuse(own, "goes with an ONNX image encoder")
    return export_clip(load_clip(clip, s.weights), out, prompts=read_prompts(s.prompts), **given)


def _from_arch(arch: str, weights: Path | None, out: Path, **options: Any) -> Bundle:
    if weights is None:
        raise ExportError(f"--arch {arch} needs its checkpoint: --weights FILE")
    from infercam.export.archs import export_arch

    return export_arch(arch, weights, out, **options)
