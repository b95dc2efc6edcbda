"""The Open Inference Protocol (KServe v2) over REST, with its binary tensor extension: requests and answers as
plain arrays. Nothing here knows what is inferred.

JSON tensors: `data` flat or nested, row-major; a BYTES element is a string. Binary tensors: after the JSON, whose
length the header Inference-Header-Content-Length gives, in the order of the inputs, little-endian; a BYTES element
is its length (4 bytes) and its bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from infercam.engine.common.errors import InputError
from infercam.engine.common.validation import first_problem

HEADER_LENGTH = "Inference-Header-Content-Length"
EXTENSIONS = ["binary_tensor_data"]
VERSION = "1"
"""Of every model: a bundle is never changed in place."""

_TYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_RANKS = 8

Tensor = NDArray[Any] | list[bytes] | list[str]
"""An array; for BYTES a flat list, str where it came as JSON."""
Dim = Annotated[int, Field(ge=0, strict=True)]


class TensorSpec(NamedTuple):
    """An input or output in a model's metadata; -1 in the shape: any."""

    name: str
    datatype: str
    shape: list[int]

    def to_json(self) -> dict[str, Any]:
        return self._asdict()


class InputTensor(BaseModel):
    name: str
    shape: list[Dim] = Field(max_length=_RANKS)
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class OutputWish(BaseModel):
    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(BaseModel):
    """The JSON of a request; what is not named here is ignored, as the protocol wants it."""

    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor] = Field(min_length=1, max_length=64)
    outputs: list[OutputWish] = Field(default=[], max_length=64)


class InferenceCall(NamedTuple):
    """A request, read."""

    id: str
    parameters: dict[str, Any]
    inputs: dict[str, Tensor]
    shapes: dict[str, list[int]]
    outputs: dict[str, bool]
    """Name -> binary; empty: all."""
    binary: bool
    """Outputs that are not named go out binary."""

    def wants(self, output: str) -> bool:
        return not self.outputs or output in self.outputs


class Encoded(NamedTuple):
    """An answer's body and headers."""

    body: bytes
    headers: dict[str, str]


def read_call(body: bytes, header_length: str | None) -> InferenceCall:
    """A request's body; raises InputError, one line, for whatever is wrong with it."""
    length = len(body) if header_length is None else _length(header_length, len(body))
    try:
        request = InferenceRequest.model_validate_json(body[:length])
    except ValidationError as e:
        raise InputError(f"malformed request: {first_problem(e)}") from None
    blobs = memoryview(body)[length:]
    tensors: dict[str, Tensor] = {}
    for given in request.inputs:
        if given.name in tensors:
            raise InputError(f"input '{given.name}' is given twice")
        tensors[given.name], blobs = _read_tensor(given, blobs)
    if len(blobs):
        raise InputError(f"{len(blobs)} bytes follow the last binary input")
    return InferenceCall(
        request.id,
        request.parameters,
        tensors,
        {given.name: given.shape for given in request.inputs},
        {wish.name: wish.parameters.get("binary_data") is True for wish in request.outputs},
        request.parameters.get("binary_data_output") is True,
    )


def _length(header: str, most: int) -> int:
    if not header.isascii() or not header.isdigit() or int(header) > most:
        raise InputError(f"{HEADER_LENGTH} is {header}: not a length within the body's {most} bytes")
    return int(header)


def _read_tensor(given: InputTensor, blobs: memoryview) -> tuple[Tensor, memoryview]:
    """One input, and what is left of the binary data."""
    count = math.prod(given.shape)
    size = given.parameters.get("binary_data_size")
    if size is None:
        return _from_json(given, count), blobs
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(blobs):
        raise InputError(f"input '{given.name}': binary_data_size {size!r} is not within the body")
    if given.data is not None:
        raise InputError(f"input '{given.name}' has both data and binary_data_size")
    blob, rest = blobs[:size], blobs[size:]
    if given.datatype == "BYTES":
        return _strings(given.name, blob, count), rest
    kind = _kind(given)
    if size != count * kind.itemsize:
        raise InputError(
            f"input '{given.name}': {given.datatype} {given.shape} takes {count * kind.itemsize} bytes, not {size}"
        )
    return np.frombuffer(blob, kind).reshape(given.shape), rest


def _kind(given: InputTensor) -> np.dtype[Any]:
    if given.datatype not in _TYPES:
        raise InputError(f"input '{given.name}': no datatype {given.datatype!r}")
    return np.dtype(_TYPES[given.datatype]).newbyteorder("<")


def _strings(name: str, blob: memoryview, count: int) -> list[bytes]:
    out: list[bytes] = []
    at = 0
    while at + 4 <= len(blob) and len(out) < count:
        (length,) = struct.unpack_from("<I", blob, at)
        out.append(bytes(blob[at + 4 : at + 4 + length]))
        at += 4 + length
    if at != len(blob) or len(out) != count:
        raise InputError(f"input '{name}': its binary data are not {count} BYTES elements")
    return out


def _from_json(given: InputTensor, count: int) -> Tensor:
    data = given.data
    if not isinstance(data, list):
        raise InputError(f"input '{given.name}' has neither data nor binary_data_size")
    if given.datatype == "BYTES":
        flat = data if len(given.shape) <= 1 else list(np.ravel(np.asarray(data, object)))
        if len(flat) != count or not all(isinstance(s, str) for s in flat):
            raise InputError(f"input '{given.name}': data are not {count} strings")
        return flat
    kind = _kind(given)
    try:
        array = np.asarray(data, kind)
    except (ValueError, TypeError, OverflowError) as e:
        raise InputError(f"input '{given.name}': data are not {given.datatype}: {e}") from None
    if array.size != count:
        raise InputError(f"input '{given.name}': {array.size} values for the shape {given.shape}")
    return array.reshape(given.shape)


def write_answer(call: InferenceCall, model: str, outputs: Mapping[str, NDArray[Any]]) -> Encoded:
    """The answer's body: each output that was asked for, as JSON or binary, in the order in which it was asked;
    raises InputError for one that there is not."""
    unknown = [name for name in call.outputs if name not in outputs]
    if unknown:
        raise InputError(f"no output '{unknown[0]}'; there are: {', '.join(outputs)}")
    listed, blobs = [], []
    for name in call.outputs or outputs:
        array = outputs[name]
        entry: dict[str, Any] = {"name": name, "datatype": _NAMES[array.dtype], "shape": list(array.shape)}
        if call.outputs.get(name, call.binary) or (name in call.outputs and call.binary):
            blob = np.ascontiguousarray(array).tobytes()
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = array.ravel().tolist()
        listed.append(entry)
    head = {"model_name": model, "model_version": VERSION, "outputs": listed}
    text = json.dumps(head | ({"id": call.id} if call.id else {}), separators=(",", ":")).encode()
    if not blobs:
        return Encoded(text, {"Content-Type": "application/json"})
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    return Encoded(b"".join([text, *blobs]), headers)
