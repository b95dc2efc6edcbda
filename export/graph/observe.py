"""Running a model once or twice to learn what static inference does not tell: shapes, and values made of shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, ValueInfoProto, helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.passes import tidy
from infercam.export.graph.trials import Trials
from infercam.export.runtime import RunError

_SIDES = [(s, s) for s in (64, 128, 224, 256, 299, 384, 448, 512)]  # tried where the model declares none
_RUNS = 3


@dataclass(frozen=True)
class Seen:
    """One run: how large the picture was, the shapes of the tensors asked about, and the values asked for."""

    batch: int
    side: tuple[int, int]
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Observed:
    """Up to three runs: one picture of two sizes, and two pictures, as far as the declared sizes are free.

    None where the model does not run at all; `failure` says why.
    """

    runs: list[Seen]
    failure: str = ""


def observe(
    model: ModelProto,
    shapes: Sequence[str],
    values: Sequence[str] = (),
    sides: Sequence[tuple[int, int]] = _SIDES,
) -> Observed:
    """Run the model, as far as these tensors need it; `sides` are the sizes to try where it declares none."""
    copy = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    copy.metadata_props.extend(model.metadata_props)
    copy.graph.CopyFrom(model.graph)
    ask = {f"infercam.shape.{i}": name for i, name in enumerate(shapes)}
    copy.graph.node.extend(helper.make_node("Shape", [name], [out]) for out, name in ask.items())
    del copy.graph.output[:]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(o) for o in [*ask, *values])
    try:
        tidy(copy)
        if len(copy.graph.input) != 1:
            return Observed([], f"it needs {len(copy.graph.input)} inputs")
    except ExportError as e:
        return Observed([], str(e))
    found: list[Seen] = []
    failure = ""
    with Trials(copy) as trials:  # at a size that the model does not declare it may end the process
        for x, side in _pictures(copy.graph.input[0], sides, found):
            try:
                out = dict(zip([*ask, *values], trials.run(x), strict=True))
            except RunError as e:
                failure = str(e)
                continue
            known = {name: tuple(map(int, out[o])) for o, name in ask.items()}
            found.append(Seen(len(x), side, known, {name: out[name] for name in values}))
            if len(found) == _RUNS:
                break
    return Observed(found, failure or "no picture fits its input")


def _pictures(
    info: ValueInfoProto, sides: Sequence[tuple[int, int]], found: list[Seen]
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Pictures of the declared sizes, where these are free of two sizes, then two at once of a size that ran."""
    kind = info.type.tensor_type
    shape = [d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim]
    if len(shape) != 4:
        return
    last = shape[3] == 3 and shape[1] != 3
    n, h, w = (shape[0], shape[1], shape[2]) if last else (shape[0], shape[2], shape[3])
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type or 1)

    def picture(batch: int, high: int, wide: int) -> np.ndarray:
        size = (batch, high, wide, 3) if last else (batch, 3, high, wide)
        return (rng.random(size) * (255 if dtype.kind in "iu" else 1)).astype(dtype)

    for high, wide in sides if h is None or w is None else sides[:1]:
        if len(found) == 2:
            break
        side = (h or high, w or wide)
        yield picture(n or 1, *side), side
    if found and n is None:
        yield picture(2, *found[0].side), found[0].side
