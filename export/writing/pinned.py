"""A traced graph that claims any size but runs at one: its input declared as it is, so that surgery can free it."""

from __future__ import annotations

from onnx import ModelProto

from infercam.export.graph.trials import Trials


def pinned(model: ModelProto, size: tuple[int, int]) -> ModelProto:
    """The model, with its input's height and width set to `size` where twice that does not run; in place.

    Tracing declares whatever it is told, but keeps a table of positions, or a reshape, of the size it was traced at.
    """
    dims = model.graph.input[0].type.tensor_type.shape.dim
    if len(dims) != 4 or dims[2].HasField("dim_value") or dims[3].HasField("dim_value"):
        return model
    with Trials(model) as trials:
        if trials.runs(2 * size[0], 2 * size[1]) or not trials.runs(*size):
            return model
    for dim, side in zip(dims[2:], size, strict=True):
        dim.Clear()
        dim.dim_value = side
    del model.graph.value_info[:]
    return model
