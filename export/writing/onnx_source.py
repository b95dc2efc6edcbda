"""From an ONNX file to a bundle: loading it safely, surgery, verification against the file itself."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper
from onnx.external_data_helper import _get_all_tensors, load_external_data_for_tensor, uses_external_data
from pydantic import ValidationError

from infercam.engine.bundle import Bundle, InputSpec, sha256_file
from infercam.engine.common.errors import BundleError, ExportError, shown
from infercam.engine.common.validation import first_problem
from infercam.engine.data.class_names import default_classes
from infercam.engine.onnx_files import external_locations
from infercam.export.graph.dynamic import USUAL, SizeWishes
from infercam.export.graph.index import Graph
from infercam.export.graph.passes import tidy
from infercam.export.graph.shelf import LARGE, Shelf, open_shelf
from infercam.export.graph.surgery import ResponseGraph, prepare, response_graph
from infercam.export.graph.wishes import MapWishes
from infercam.export.runtime import GraphSession, RunError, forget_folder, weight_bytes
from infercam.export.writing.bundle_writer import write_as_it_agrees, write_bundle
from infercam.export.writing.light_read import read_light
from infercam.export.writing.pixels import Pixels, input_pixels
from infercam.export.writing.slim import simplify
from infercam.export.writing.verify import SourceLimit


def export_onnx(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float | None = None,
    colour: Literal["RGB", "BGR"] = "RGB",
    input_name: str | None = None,
    output: str | None = None,
    keep_classes: Sequence[int] | None = None,
    multi_label: bool | None = None,
    images: Sequence[np.ndarray] = (),
    tolerance: float = 1e-4,
    slim: bool = True,
    fold_batch_norm: bool = True,
    size: tuple[int, int] | None = None,
    attention: bool = False,
    recipro: bool = False,
    affinity: int = 0,
    name: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Turn an ONNX classifier that ends in global average pooling and a linear layer into a bundle.

    The classifier must take what the engine will give it: `(pixel * scale - mean) / std`, pixels 0..255. Where
    none of the three is given they are ImageNet's; mean 0, std 1 and scale 1 or 1/255 for a graph that evidently
    normalises by itself; and scale 1 for one that takes uint8. `classes` defaults to names in the
    model's metadata, else the 20 of VOC if it has 20 outputs, else class_0, …; `multi_label` to False only if the
    model closes with a softmax. `size` (height, width) fixes the input's size, which else is free where the model
    allows, or the model's own. `fold_batch_norm`: batch norms go into the layer before them, or become a scale and
    a shift. `recipro`: of any head, one position at a time. `attention`: a class token's map times the last block's
    attention. `affinity`: the attention of so many last blocks as an output. `images` are (H, W, 3) uint8 RGB arrays
    to verify on besides generated ones.

    Raises ExportError: one line saying what is wrong with the file and which node prevents the surgery.
    """
    file = Path(path)
    user = Pixels(mean, std, scale)
    _spec(*user.filled(), colour)  # what is wrong in it is said before the work

    def graph_of(sizes: SizeWishes) -> ResponseGraph:
        try:
            graph = response_graph(
                model,
                keep_classes=keep_classes,
                output=output,
                input_name=input_name,
                sizes=sizes,
                fold_batch_norm=fold_batch_norm,
                maps=MapWishes(attention=attention, recipro=recipro, affinity=affinity),
            )
        except ExportError as e:
            raise ExportError(f"{file}: {e}") from None
        return simplify(graph, fold_batch_norm=fold_batch_norm) if slim else graph

    def write(graph: ResponseGraph) -> Bundle:
        names, named_by = (list(classes), "given") if classes else default_classes(graph.classes, metadata)
        try:
            pixels, notes = input_pixels(graph, user)
        except ExportError as e:
            raise ExportError(f"{file}: {e}") from None
        scores = onnx_scores(model, graph, keep_classes)
        if graph.source_size is None:
            graph = replace(graph, source_size=_where_it_runs(graph, scores))
        return write_bundle(
            Path(out),
            replace(graph, notes=[*graph.notes, *notes]),
            classes=names,
            input_spec=_spec(*pixels, colour),
            multi_label=graph.multi_label if multi_label is None else multi_label,
            source=origin(file, model) | {"logits": graph.logits, "classes_from": named_by},
            source_scores=scores,
            images=images,
            tolerance=tolerance,
            name=name or file.stem,
            overwrite=overwrite,
        )

    with open_shelf() as shelf:
        model = load_model(file, shelf)
        metadata = {p.key: p.value for p in model.metadata_props}
        return write_as_it_agrees([graph_of], write, SizeWishes(size=size))


def origin(file: Path, model: ModelProto) -> dict[str, Any]:
    """What the manifest says of the file."""
    source: dict[str, Any] = {"kind": "onnx", "file": file.name, "sha256": sha256_file(file)}
    if model.producer_name:
        source["producer"] = f"{model.producer_name} {model.producer_version}".strip()
    return source


def _spec(
    mean: Sequence[float], std: Sequence[float], scale: float, colour: Literal["RGB", "BGR"]
) -> InputSpec:
    for what, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not np.isfinite(values).all():
            raise ExportError(f"{what} must be three numbers, one per channel, not {list(values)}")
    try:
        return InputSpec(mean=tuple(mean), std=tuple(std), scale=scale, colour=colour)
    except ValidationError as e:
        raise ExportError(first_problem(e, "input")) from None


def load_model(file: Path, shelf: Shelf | None = None) -> ModelProto:
    """Read an ONNX file, weights in its own folder included, the large ones onto the shelf; raises ExportError.

    Weights may lie in files beside the model (over 2 GB they must); a path that leads elsewhere is refused.
    """
    if not file.is_file():
        raise ExportError(f"{file}: no such file")
    try:
        light = None if shelf is None else read_light(file, shelf)
        model = onnx.load(str(file), load_external_data=False) if light is None else light
    except Exception as e:  # protobuf's DecodeError is not importable in every version
        raise ExportError(f"{file}: is not an ONNX model ({' '.join(str(e).split())[:100]})") from None
    if not model.graph.node and not model.ir_version:
        raise ExportError(f"{file}: is not an ONNX model")
    forget_folder(model)  # which is nobody else's to say
    targets = {location: _target(file, location) for location in _locations(file)}
    try:
        _load_weights(model, targets, shelf)
    except Exception as e:
        text = " ".join(str(e).split())[:200]
        raise ExportError(f"{file}: its external weights cannot be read: {text}") from None
    if shelf is not None:
        shelf.take(model)
    return model


def _load_weights(model: ModelProto, targets: dict[str, Path], shelf: Shelf | None) -> None:
    """Read external weights from where their links lead: onnx itself refuses links."""
    for tensor in model.graph.initializer if targets else ():
        large = uses_external_data(tensor) and weight_bytes(tensor) > LARGE
        if shelf is not None and large and not shelf.has(tensor):
            _shelve(tensor, targets, shelf)
    for tensor in _get_all_tensors(model) if targets else ():
        for entry in tensor.external_data if uses_external_data(tensor) else ():
            if entry.key == "location" and not (shelf is not None and shelf.has(tensor)):
                target = targets[entry.value]
                entry.value = target.name
                load_external_data_for_tensor(tensor, str(target.parent))
                break


def _shelve(tensor: TensorProto, targets: dict[str, Path], shelf: Shelf) -> None:
    """From one file to the other; what does not lie there as it should is left to the onnx package."""
    where = {e.key: e.value for e in tensor.external_data}
    offset, size = int(where.get("offset") or 0), weight_bytes(tensor)
    with targets[where["location"]].open("rb") as f:
        if int(where.get("length") or size) != size or os.fstat(f.fileno()).st_size < offset + size:
            return
        with (
            mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as whole,
            whole[offset : offset + size] as values,
        ):
            tensor.CopyFrom(shelf.put(tensor, values))


def _locations(file: Path) -> list[str]:
    """Where the file's tensors keep their data, wherever in the model they are."""
    try:
        return external_locations(file)
    except BundleError as e:
        raise ExportError(str(e)) from None


def _target(file: Path, location: str) -> Path:
    """The file that a tensor's location means, links followed; raises ExportError for one that is elsewhere.

    Allowed are the model's folder and, where the model itself is a link, the folder it leads to: this is how
    Hugging Face's cache keeps both (links in snapshots/, files in blobs/).
    """
    folder = file.parent.resolve()
    allowed = (folder, file.resolve().parent)
    target = folder if "\0" in location else (folder / location).resolve()
    if not location or "\0" in location or not any(target.is_relative_to(f) for f in allowed):
        raise ExportError(
            f"{file}: has weights outside the model's folder ({shown(location) or 'no path'}); "
            "put the file beside the model and re-save it"
        )
    if not target.is_file():
        raise ExportError(f"{file}: has weights in '{shown(location)}', which is missing")
    return target


def onnx_scores(
    model: ModelProto, graph: ResponseGraph, keep_classes: Sequence[int] | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The classifier's own logits, its nodes run untouched in ONNX Runtime, at the shapes it was declared for."""
    index = Graph(model)
    as_it_is = graph.logits in [o.name for o in model.graph.output] and len(index.image_inputs()) == 1
    if not as_it_is:
        original = prepare(model)
        del original.graph.output[:]
        original.graph.output.append(helper.make_empty_tensor_value_info(graph.logits))
        tidy(original)  # what the logits do not depend on needs not be fed
        index = Graph(original)
    whole = graph.whole_numbers
    picture = index.image_inputs()[0]
    dtype = helper.tensor_dtype_to_np_dtype(picture.type.tensor_type.elem_type)
    shape = index.shape(picture.name) or (None,) * 4
    if graph.channels_last:
        shape = (shape[0], shape[3], shape[1], shape[2])
    fixed = [d if isinstance(d, int) and d > 0 else None for d in shape]
    if graph.source_size is not None:
        fixed[2:] = graph.source_size
    try:
        session = GraphSession(index.model)
    except RunError as e:
        raise ExportError(f"ONNX Runtime cannot run the classifier: {e}") from None

    def scores(x: np.ndarray) -> np.ndarray:
        if any(f is not None and f != d for f, d in zip(fixed[2:], x.shape[2:], strict=True)):
            raise SourceLimit(f"the source takes {fixed[2]}x{fixed[3]} only")
        if whole and not np.array_equal(x, x.clip(0, 255).round()):
            raise SourceLimit("the source takes whole numbers from 0 to 255 only")
        x = x.astype(dtype)
        step = fixed[0] or len(x)
        rows = [_run_batch(session, x[i : i + step], step, graph) for i in range(0, len(x), step)]
        found = np.concatenate(rows).astype(np.float32)
        return found if keep_classes is None else found[:, list(keep_classes)]

    return scores


def _where_it_runs(
    graph: ResponseGraph, scores: Callable[[np.ndarray], np.ndarray]
) -> tuple[int, int] | None:
    """A size at which the source can be compared: that where the graph was seen to run, or a usual one, where the
    source declares none but has baked it (a table of positions). None where there is no such size."""
    for size in (graph.base, *((side, side) for side in USUAL if graph.takes(side, side))):
        try:
            scores(np.zeros((1, 3, *size), np.float32))
        except SourceLimit:
            continue
        return size
    return None


def _run_batch(session: GraphSession, x: np.ndarray, size: int, graph: ResponseGraph) -> np.ndarray:
    """Logits of up to `size` pictures by a session that takes exactly `size`."""
    n = len(x)
    x = np.concatenate([x, np.repeat(x[-1:], size - n, axis=0)]) if n < size else x
    try:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if graph.channels_last else x
        out = session.run(x, [graph.logits])[0]
    except RunError as e:
        raise SourceLimit(f"the source fails: {e}") from None
    return out.reshape(size, -1)[:n]
