"""A bundle of a CLIP and some names: `infercam export --clip`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from infercam.engine.bundle import Bundle, InputSpec, Triple
from infercam.engine.common.errors import ExportError
from infercam.export.clip.attention_pool import has_attention_pool, response_module
from infercam.export.clip.models import MEAN, STD, Clip
from infercam.export.clip.texts import read_vectors, text_vectors
from infercam.export.graph.dynamic import SizeWishes
from infercam.export.graph.surgery import (
    RESPONSE,
    SCORES,
    ZERO_SHOT_NOTE,
    ResponseGraph,
    finished,
    response_graph,
)
from infercam.export.graph.wishes import MapWishes, ZeroShot
from infercam.export.writing.bundle_writer import write_as_it_agrees, write_bundle
from infercam.export.writing.from_torch import (
    INPUT,
    OPSET,
    evaluation_mode,
    example_input,
    quiet,
    scorer,
    to_onnx,
)
from infercam.export.writing.onnx_source import load_model, onnx_scores, origin
from infercam.export.writing.pinned import pinned
from infercam.export.writing.verify import Scores

if TYPE_CHECKING:
    from torch import nn

SCALE = 100.0
"""What published CLIPs multiply cosines with."""


def zero_shot(names: Sequence[str], background: Sequence[str], vectors: np.ndarray, scale: float) -> ZeroShot:
    """Raises ExportError where there is nothing to choose from."""
    if len(names) + len(background) < 2:
        raise ExportError("one name alone always fits best: give another, or --background FILE")
    twice = next((b for b in background if b in names), None)
    if twice is not None:
        raise ExportError(f"'{twice}' is both a class and the background")
    return ZeroShot(vectors, len(names), scale)


def export_clip_onnx(
    file: Path,
    text: Path,
    out: Path,
    *,
    names: Sequence[str],
    background: Sequence[str] = (),
    scale: float = SCALE,
    mean: Triple = MEAN,
    std: Triple = STD,
    output: str | None = None,
    input_name: str | None = None,
    size: tuple[int, int] | None = None,
    affinity: int = 0,
    **options: Any,
) -> Bundle:
    """Of an ONNX image encoder (a ViT: image -> embeddings N×E) and a matrix of text vectors, names first.

    `options` are `write_bundle`'s: images, tolerance, name, overwrite. Raises ExportError.
    """
    model = load_model(file)
    wish = zero_shot(names, background, read_vectors(text, len(names) + len(background)), scale)
    source = origin(file, model) | _about(background, wish)

    def graph_of(sizes: SizeWishes) -> ResponseGraph:
        try:
            return response_graph(
                model,
                output=output,
                input_name=input_name,
                sizes=sizes,
                maps=MapWishes(zero_shot=wish, affinity=affinity),
            )
        except ExportError as e:
            raise ExportError(f"{file}: {e}") from None

    def write(graph: ResponseGraph) -> Bundle:
        embeddings = onnx_scores(model, graph)
        return _write(out, graph, names, (mean, std), source, lambda x: wish.logits(embeddings(x)), options)

    return write_as_it_agrees([graph_of], write, SizeWishes(size=size))


def export_clip(
    clip: Clip,
    out: Path,
    *,
    names: Sequence[str],
    prompts: Sequence[str],
    background: Sequence[str] = (),
    affinity: int = 0,
    **options: Any,
) -> Bundle:
    """Of a CLIP in PyTorch; raises ExportError as `from_torch` does."""
    vectors = text_vectors([*names, *background], prompts, clip.encode)
    wish = zero_shot(names, background, vectors, clip.scale)
    source = clip.source | {"prompts": list(prompts)} | _about(background, wish)
    with evaluation_mode(clip.image):
        pool = has_attention_pool(clip.image)
        if pool and affinity:
            raise ExportError("--affinity: a ResNet has no self-attention among patches")
        models: Iterable[onnx.ModelProto]
        if pool:
            models = [_traced(response_module(clip.image, wish), clip.size)]
        else:
            models = (pinned(model, clip.size) for model in to_onnx(clip.image, clip.size))
        embeddings = scorer(clip.image)

        def graph_of(model: onnx.ModelProto, sizes: SizeWishes) -> ResponseGraph:
            if pool:
                none = np.zeros(wish.wanted, np.float32)
                found = finished(model, INPUT, none, sizes=sizes, method="attention-pool", in_patches=True)
                found = replace(found, notes=[ZERO_SHOT_NOTE, *found.notes])
            else:
                found = response_graph(model, sizes=sizes, maps=MapWishes(zero_shot=wish, affinity=affinity))
            return replace(found, source_size=clip.size)

        def write(graph: ResponseGraph) -> Bundle:
            pixels = (clip.mean, clip.std)
            return _write(out, graph, names, pixels, source, lambda x: wish.logits(embeddings(x)), options)

        sources = (partial(graph_of, model) for model in models)
        return write_as_it_agrees(sources, write, SizeWishes(own=clip.size))


def _about(background: Sequence[str], wish: ZeroShot) -> dict[str, Any]:
    return {"background": list(background), "logit_scale": wish.scale, "classes_from": "given"}


def _write(
    out: Path,
    graph: ResponseGraph,
    names: Sequence[str],
    pixels: tuple[Triple, Triple],
    source: dict[str, Any],
    source_scores: Scores,
    options: dict[str, Any],
) -> Bundle:
    return write_bundle(
        out,
        graph,
        classes=names,
        input_spec=InputSpec(mean=pixels[0], std=pixels[1]),
        multi_label=False,
        source=source,
        source_scores=source_scores,
        **options,
    )


def _traced(module: nn.Module, size: tuple[int, int]) -> onnx.ModelProto:
    """The module's own two outputs as a graph of free sizes."""
    import torch

    axes = {INPUT: {0: "N", 2: "H", 3: "W"}, SCORES: {0: "N"}, RESPONSE: {0: "N", 2: "h", 3: "w"}}
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "clip.onnx"
        torch.onnx.export(
            module,
            (example_input(module, size),),
            file,
            dynamo=False,
            dynamic_axes=axes,
            input_names=[INPUT],
            output_names=[SCORES, RESPONSE],
            opset_version=OPSET,
        )
        return onnx.load(file)
