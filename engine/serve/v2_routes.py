"""The Open Inference Protocol's routes. Each bundle is two models: NAME, the bare network on normalised pictures, and
NAME_maps, the whole method on picture files."""

from __future__ import annotations

import base64
import binascii
import math
from importlib.metadata import version
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray

from infercam.engine.api import Label
from infercam.engine.common.errors import InputError
from infercam.engine.data.images import RGB
from infercam.engine.method.recipe import RECIPES, checked_mode
from infercam.engine.serve.bodies import read_body
from infercam.engine.serve.hosted import HostedBundle
from infercam.engine.serve.protocol import (
    EXTENSIONS,
    HEADER_LENGTH,
    VERSION,
    Encoded,
    InferenceCall,
    TensorSpec,
    read_call,
    write_answer,
)
from infercam.engine.serve.refusals import Refusal
from infercam.engine.serve.service import MapsRequest, Service

_MODEL = "/v2/models/{model}"
_VERSIONED = _MODEL + "/versions/{version}"
MAPS_OUTPUTS = ("maps", "classes", "scores")


def router(service: Service) -> APIRouter:
    """All routes below /v2."""
    routes = APIRouter()

    @routes.get("/v2")
    async def server() -> JSONResponse:
        return JSONResponse({"name": "infercam", "version": version("infercam"), "extensions": EXTENSIONS})

    @routes.get("/v2/health/live")
    async def live() -> JSONResponse:
        return JSONResponse({"live": True})

    @routes.get("/v2/health/ready")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @routes.get(_MODEL)
    @routes.get(_VERSIONED)
    async def metadata(model: str, version: str = VERSION) -> JSONResponse:
        hosted, whole = _find(service, model, version)
        return JSONResponse(_metadata(service, hosted, whole))

    @routes.get(_MODEL + "/ready")
    @routes.get(_VERSIONED + "/ready")
    async def model_ready(model: str, version: str = VERSION) -> JSONResponse:
        hosted, _ = _find(service, model, version)
        up = hosted.live.alive and not service.draining
        return JSONResponse({"name": model, "ready": up}, 200 if up else 503)

    @routes.post(_MODEL + "/infer")
    @routes.post(_VERSIONED + "/infer")
    async def infer(request: Request, model: str, version: str = VERSION) -> Response:
        hosted, whole = _find(service, model, version)
        with service.admitted(request):
            body = await read_body(request, service.bounds)
            header = request.headers.get(HEADER_LENGTH)
            work = _maps if whole else _response
            answer = await service.within_time(request, work(service, hosted, body, header))
        return Response(answer.body, headers=answer.headers)

    return routes


def _find(service: Service, model: str, version: str) -> tuple[HostedBundle, bool]:
    """The bundle of a model, and whether it is the one of the whole method; raises Refusal 404."""
    for hosted in service.hosts:
        if model in (hosted.name, hosted.maps_name):
            if version != VERSION:
                raise Refusal(404, f"model '{model}' has no version '{version}', only {VERSION}")
            return hosted, model == hosted.maps_name
    names = ", ".join(f"{h.name}, {h.maps_name}" for h in service.hosts)
    raise Refusal(404, f"no model '{model}'; there are: {names}")


def _metadata(service: Service, hosted: HostedBundle, whole: bool) -> dict[str, Any]:
    manifest = hosted.engine.manifest
    classes = len(manifest.classes)
    if whole:
        inputs = [TensorSpec("image", "BYTES", [1]), TensorSpec("classes", "BYTES", [-1])]
        outputs = [
            TensorSpec("maps", "FP32", [-1, -1, -1]),
            TensorSpec("classes", "INT32", [-1]),
            TensorSpec("scores", "FP32", [classes]),
        ]
    else:
        size = [manifest.input.height or -1, manifest.input.width or -1]
        inputs = [TensorSpec(manifest.input.name, "FP32", [-1, 3, *size])]
        outputs = [
            TensorSpec(manifest.response, "FP32", [-1, classes, -1, -1]),
            TensorSpec(manifest.scores, "FP32", [-1, classes]),
        ]
    return {
        "name": hosted.maps_name if whole else hosted.name,
        "versions": [VERSION],
        "platform": "infercam_maps" if whole else "infercam_response",
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in outputs],
        "parameters": hosted.info(service.default_recipe) if whole else {},
    }


# -- the bare network ------------------------------------------------------------------------------------------
async def _response(service: Service, hosted: HostedBundle, body: bytes, header: str | None) -> Encoded:
    call = await service.on_thread(read_call, body, header)
    manifest = hosted.engine.manifest
    _only(call, {manifest.input.name})
    x = call.inputs[manifest.input.name]
    if not isinstance(x, np.ndarray):
        raise InputError(f"input '{manifest.input.name}' is FP32 N×3×H×W, not BYTES")
    if x.ndim == 4 and math.prod(x.shape) > 3 * service.bounds.pixels:
        raise Refusal(413, f"{x.shape[0]} inputs of {x.shape[2]}×{x.shape[3]} are over the pixel limit")
    inferred = await service.infer(hosted, x)
    outputs = {manifest.response: inferred.response, manifest.scores: inferred.scores}
    return await service.on_thread(write_answer, call, hosted.name, outputs)


# -- the whole method ------------------------------------------------------------------------------------------
async def _maps(service: Service, hosted: HostedBundle, body: bytes, header: str | None) -> Encoded:
    call = await service.on_thread(read_call, body, header)
    _only(call, {"image"}, {"classes"})
    unknown = [name for name in call.outputs if name not in MAPS_OUTPUTS]
    if unknown:
        raise InputError(f"no output '{unknown[0]}'; there are: {', '.join(MAPS_OUTPUTS)}")
    wish = _wish(service, hosted, call)
    pixels = await _picture(service, call)
    outcome = await service.maps(hosted, call.id or "image", pixels, wish)
    outputs: dict[str, NDArray[Any]] = {
        "maps": outcome.result.maps,
        "classes": np.asarray(outcome.result.classes, np.int32),
    }
    if outcome.scores is not None:
        outputs["scores"] = outcome.scores
    return await service.on_thread(write_answer, call, hosted.maps_name, outputs)


def _only(call: InferenceCall, needed: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Raises InputError for inputs that are missing or that nobody knows."""
    for name in needed - call.inputs.keys():
        raise InputError(f"input '{name}' is missing")
    for name in sorted(call.inputs.keys() - needed - optional):
        raise InputError(f"no input '{name}'; there are: {', '.join(sorted(needed | optional))}")


def _wish(service: Service, hosted: HostedBundle, call: InferenceCall) -> MapsRequest:
    given = call.parameters
    recipe, mode = given.get("recipe", service.default_recipe), given.get("mode", "both")
    threshold = given.get("score_threshold", 0.5)
    if recipe not in RECIPES:
        raise InputError(f"no recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    chosen = checked_mode(mode)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold <= 1:
        raise InputError(f"score_threshold is a number from 0 to 1, not {threshold!r}")
    return MapsRequest(_classes(hosted, call), recipe, chosen, float(threshold), call.wants("scores"))


def _classes(hosted: HostedBundle, call: InferenceCall) -> list[Label] | None:
    given = call.inputs.get("classes")
    if given is None:
        return None
    if isinstance(given, np.ndarray):
        raise InputError("input 'classes' is BYTES [K]: names or indices")
    return [label(s.decode("utf-8", "replace") if isinstance(s, bytes) else s, hosted.classes) for s in given]


def label(text: str, classes: list[str]) -> Label:
    """A class as a client writes it: a name, or else an index."""
    return int(text) if text not in classes and text.isascii() and text.isdigit() else text


async def _picture(service: Service, call: InferenceCall) -> RGB:
    """Input `image`: BYTES [1], an encoded picture (base64 where it comes as JSON), or UINT8 H×W×3."""
    given = call.inputs["image"]
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or 0 in given.shape:
            raise InputError("input 'image' is BYTES [1], an encoded picture, or UINT8 [H,W,3]")
        if given.shape[0] * given.shape[1] > service.bounds.pixels:
            raise Refusal(413, f"{given.shape[0]}×{given.shape[1]} pixels are over the limit (--max-pixels)")
        return given
    if len(given) != 1:
        raise InputError(f"input 'image' is one encoded picture, not {len(given)}")
    data = given[0]
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise InputError("input 'image' as JSON is one base64 string") from None
    return await service.decoded(data)
