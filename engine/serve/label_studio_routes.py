"""Label Studio's protocol of ML backends, below /label-studio: health, setup, predict; nothing is trained."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from infercam.engine.api import Result
from infercam.engine.common.errors import InfercamError, InputError, shown
from infercam.engine.common.validation import first_problem
from infercam.engine.labelling.label_studio import LabelControl, prediction
from infercam.engine.labelling.regions import regions_of_maps
from infercam.engine.serve.bodies import read_body
from infercam.engine.serve.hosted import HostedBundle
from infercam.engine.serve.label_studio_pictures import TaskPictures
from infercam.engine.serve.refusals import Refusal
from infercam.engine.serve.service import MapsRequest, Service

_AT_ONCE = 8
"""Tasks of one request whose pictures are in memory together."""
PATH = "/label-studio"


class SetupCall(BaseModel):
    """What is used of it."""

    label_config: str = Field(alias="schema")


class PredictTask(BaseModel):
    data: dict[str, Any]


class PredictCall(BaseModel):
    tasks: list[PredictTask]
    label_config: str


Call = TypeVar("Call", SetupCall, PredictCall)


def router(service: Service, pictures: TaskPictures) -> APIRouter:
    """GET health, POST setup, predict and webhook."""
    routes = APIRouter()

    @routes.get(PATH)
    @routes.get(PATH + "/")
    @routes.get(PATH + "/health")
    async def health() -> JSONResponse:
        up = service.ready
        return JSONResponse({"status": "UP" if up else "DOWN", "model_class": "infercam"}, 200 if up else 503)

    @routes.post(PATH + "/setup")
    async def setup(request: Request) -> JSONResponse:
        call = await _read(SetupCall, request, service)
        _, hosted = _wanted(service, call.label_config)
        return JSONResponse({"model_version": _version(service, hosted)})

    @routes.post(PATH + "/webhook")
    async def webhook() -> JSONResponse:
        return JSONResponse({"status": "nothing is trained here"})

    @routes.post(PATH + "/predict")
    async def predict(request: Request) -> JSONResponse:
        with service.admitted(request):
            call = await _read(PredictCall, request, service)
            control, hosted = _wanted(service, call.label_config)
            work = _predictions(service, pictures, control, hosted, call.tasks)
            return JSONResponse({"results": await service.within_time(request, work)})

    return routes


async def _read(kind: type[Call], request: Request, service: Service) -> Call:
    try:
        return kind.model_validate_json(await read_body(request, service.bounds))
    except ValidationError as e:
        raise InputError(first_problem(e)) from None


def _wanted(service: Service, config: str) -> tuple[LabelControl, HostedBundle]:
    control = LabelControl.of(config)
    hosted = service.hosts.get(control.bundle)
    if hosted is None:
        names = ", ".join(h.name for h in service.hosts)
        raise Refusal(404, f'no bundle model_bundle="{control.bundle}"; there are: {names}')
    control.check_classes(hosted.classes)
    return control, hosted


def _version(service: Service, hosted: HostedBundle) -> str:
    return f"{hosted.name}-{hosted.engine.bundle.hash[:8]}-{service.default_recipe}"


async def _predictions(
    service: Service,
    pictures: TaskPictures,
    control: LabelControl,
    hosted: HostedBundle,
    tasks: list[PredictTask],
) -> list[dict[str, Any]]:
    """One for each task. Of several, one that fails has an empty one and its `error`; one alone raises it."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def guarded(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        async with places:
            try:
                return await work
            except (InfercamError, Refusal) as e:
                if len(tasks) == 1:
                    raise
                sys.stderr.write(f"label-studio: {shown(e)}\n")
                return {**prediction([], _version(service, hosted)), "error": shown(e)}

    works = [guarded(_prediction(service, pictures, control, hosted, task)) for task in tasks]
    return list(await asyncio.gather(*works))


async def _prediction(
    service: Service, pictures: TaskPictures, control: LabelControl, hosted: HostedBundle, task: PredictTask
) -> dict[str, Any]:
    # Waiting for Label Studio is not work for the service's few threads.
    file = await asyncio.to_thread(pictures.read, task.data.get(control.value))
    pixels = await service.decoded(file)
    wish = MapsRequest(None, service.default_recipe, score_threshold=control.score_threshold)
    outcome = await service.maps(hosted, "task", pixels, wish)
    height, width = pixels.shape[:2]
    model = _version(service, hosted)
    return await service.on_thread(_regions, outcome.result, control, hosted.classes, height, width, model)


def _regions(
    result: Result, control: LabelControl, classes: list[str], height: int, width: int, model: str
) -> dict[str, Any]:
    regions = regions_of_maps(result.maps, result.classes, control.threshold)
    return control.prediction(regions, classes, height, width, model)
