"""The `config.pbtxt` of each model, from a graph's signature and the bundle's manifest.

The text is our own (text_format.py). Where tritonclient is installed, which carries Triton's protobuf schema, it is
parsed as the server will.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError
from infercam.engine.runners.plan import PlanRecord
from infercam.export.triton.plans import largest_batch
from infercam.export.triton.signature import FREE, Signature, Tensor
from infercam.export.triton.text_format import Message, Word, to_text

Device = Literal["auto", "cpu", "gpu"]

LABELS = "labels.txt"
_WARM_SIDE = 320
"""Of the warm-up's picture where the graph takes any size."""


@dataclass(frozen=True)
class Serving:
    """How the models are to be served."""

    max_batch: int = 8
    """Most pictures of the network in one batch (ONNX, TensorRT)."""
    queue_delay_us: int = 2000
    """Microseconds that Triton waits for a fuller batch (ONNX, TensorRT)."""
    instances: int = 1
    device: Device = "auto"
    """auto: a GPU where the server has one."""
    recipe: str = "fast"
    """Of a request that names none (maps)."""
    score_threshold: float = 0.5
    """Probability above which a class is predicted, for a request without classes (maps)."""
    queue: int = 64
    """Requests in flight in one instance; one more is answered UNAVAILABLE (maps)."""
    max_pixels: int = 4_000_000
    """Of a picture (maps)."""


def onnx_config(name: str, bundle: Bundle, signature: Signature, serving: Serving) -> Message:
    """Configuration of the response graph in Triton's ONNX Runtime backend."""
    kind = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}[serving.device]
    group: Message = {"count": serving.instances, "kind": Word(kind)}
    warm = tuple(d if d != FREE else _WARM_SIDE for d in signature.image.dims[2:])
    start: Message = {"name": name, "platform": "onnxruntime_onnx", "backend": "onnxruntime"}
    return _network(start, bundle, signature, serving, serving.max_batch, group, warm)


def tensorrt_config(
    name: str, bundle: Bundle, signature: Signature, serving: Serving, record: PlanRecord
) -> Message:
    """Configuration of a plan in Triton's TensorRT backend, with every profile of it."""
    group: Message = {
        "count": serving.instances,
        "kind": Word("KIND_GPU"),
        "profile": [str(i) for i in range(len(record.profiles))],
    }
    warm = record.profiles[0].best[1:]
    start: Message = {"name": name, "platform": "tensorrt_plan", "backend": "tensorrt"}
    batch = min(serving.max_batch, largest_batch(record))
    extra = {"plan_gpu": record.gpu, "plan_tensorrt": record.tensorrt, "plan_precision": record.precision}
    return _network(start, bundle, signature, serving, batch, group, warm, extra)


def maps_config(name: str, bundle: Bundle, serving: Serving, precision: str | None) -> Message:
    """Configuration of the whole method in Triton's Python backend (maps_model.py).

    No batch dimension: the pictures of a request would have to be of one size. The model answers later than
    `execute` returns, so that what Triton hands over one by one is batched by the engine's scheduler.
    """
    free = [FREE]
    parameters = {
        "device": serving.device,
        "recipe": serving.recipe,
        "score_threshold": str(serving.score_threshold),
        "queue": str(serving.queue),
        "max_pixels": str(serving.max_pixels),
        **({"precision": precision} if precision else {}),
    }
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "version_policy": _LATEST,
        "input": [
            {"name": "image", "data_type": Word("TYPE_STRING"), "dims": [1]},
            {"name": "classes", "data_type": Word("TYPE_STRING"), "dims": free, "optional": True},
        ],
        "output": [
            {"name": "maps", "data_type": Word("TYPE_FP32"), "dims": [FREE] * 3},
            {"name": "classes", "data_type": Word("TYPE_INT32"), "dims": free},
            _scores(Tensor("scores", "FP32", (len(bundle.manifest.classes),)), skip=0),
        ],
        # The engine finds its device itself; every instance is a process with a scheduler of its own.
        "instance_group": [{"count": serving.instances, "kind": Word("KIND_MODEL")}],
        "parameters": _parameters({**parameters, "bundle_hash": bundle.hash}),
    }


_LATEST: Message = {"latest": {"num_versions": 1}}


def _network(
    start: Message,
    bundle: Bundle,
    signature: Signature,
    serving: Serving,
    max_batch: int,
    group: Message,
    warm: Sequence[int],
    parameters: dict[str, str] | None = None,
) -> Message:
    """What a response graph's configuration has whatever runs it. warm: height and width of the warm-up.

    A graph of one fixed batch has it among its dimensions, and Triton does not batch (max_batch_size 0).
    """
    batched, skip = signature.batched, int(signature.batched)
    image, response = signature.image, signature.response
    config: dict[str, Any] = {
        **start,
        "max_batch_size": max_batch if batched else 0,
        "version_policy": _LATEST,
        "input": [{"name": image.name, "data_type": _type(image), "dims": list(image.dims[skip:])}],
        "output": [
            _scores(signature.scores, skip),
            {"name": response.name, "data_type": _type(response), "dims": list(response.dims[skip:])},
        ],
        "instance_group": [group],
    }
    if batched and max_batch > 1:
        # Only requests of equal shape share a batch: a convolution takes no ragged one.
        config["dynamic_batching"] = {"max_queue_delay_microseconds": serving.queue_delay_us}
    blank: Message = {"data_type": _type(image), "dims": [*image.dims[skip:-2], *warm], "zero_data": True}
    config["model_warmup"] = [
        {"name": "blank", "batch_size": 1, "inputs": [{"key": image.name, "value": blank}]}
    ]
    config["parameters"] = _parameters({**(parameters or {}), "bundle_hash": bundle.hash})
    return config


def _type(tensor: Tensor) -> Word:
    return Word(f"TYPE_{tensor.dtype}")


def _scores(tensor: Tensor, skip: int) -> Message:
    """The output that clients may ask for as a classification: best classes with their names."""
    dims = list(tensor.dims[skip:])
    return {"name": tensor.name, "data_type": _type(tensor), "dims": dims, "label_filename": LABELS}


def _parameters(values: dict[str, str]) -> list[Message]:
    return [{"key": k, "value": {"string_value": v}} for k, v in values.items()]


def config_text(config: Message) -> str:
    """The file's text, parsed by Triton's own schema first where that is installed; raises ExportError."""
    text = to_text(config)
    if schema_installed():
        check(text)
    return text


def schema_installed() -> bool:
    """Whether tritonclient is there with its gRPC part, which holds the schema."""
    return all(find_spec(package) is not None for package in ("tritonclient", "grpc"))


def check(text: str) -> None:
    """Parse a configuration with the schema in tritonclient; raises ExportError with the parser's line."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as e:
        raise ExportError(f"config.pbtxt is not what Triton's schema takes: {e}") from None
