"""`POST /maps`: a picture file in, its maps out as JSON with PNGs, or as a map store's file; `GET /info`."""

from __future__ import annotations

import json
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infercam.engine.api import Label
from infercam.engine.common.errors import InputError
from infercam.engine.common.validation import first_problem
from infercam.engine.method.recipe import RECIPES, Mode
from infercam.engine.method.trace import Trace
from infercam.engine.serve.bodies import read_upload
from infercam.engine.serve.hosted import HostedBundle
from infercam.engine.serve.pictures import grey_png, mask_png
from infercam.engine.serve.refusals import Refusal
from infercam.engine.serve.service import MapsRequest, RequestOutcome, Service
from infercam.engine.serve.v2_routes import label
from infercam.engine.store.formats.npz import NpzCodec, quantise
from infercam.engine.store.record import MapRecord


class Query(BaseModel):
    """What may stand in the query or in the form's fields."""

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = None
    id: str = Field(default="image", max_length=256)
    classes: list[str] | None = None
    recipe: str | None = None
    mode: Mode = "both"
    score_threshold: float = Field(default=0.5, ge=0, le=1)
    scores: bool | None = None
    """None: with JSON."""
    steps: bool = False
    format: Literal["json", "npz"] = "json"

    @classmethod
    def of(cls, items: list[tuple[str, str]]) -> Query:
        """Raises InputError, one line."""
        values: dict[str, object] = dict(items)
        if "classes" in values:
            values["classes"] = [value for name, value in items if name == "classes"]
        try:
            query = cls.model_validate(values)
        except ValidationError as e:
            raise InputError(first_problem(e)) from None
        if query.recipe is not None and query.recipe not in RECIPES:
            raise InputError(f"no recipe {query.recipe!r}; there are: {', '.join(RECIPES)}")
        return query

    def wish(self, hosted: HostedBundle, default_recipe: str) -> MapsRequest:
        return MapsRequest(
            None if self.classes is None else _labels(self.classes, hosted.classes),
            self.recipe or default_recipe,
            self.mode,
            self.score_threshold,
            self.format == "json" if self.scores is None else self.scores,
            self.steps and self.format == "json",
        )


def _labels(given: list[str], classes: list[str]) -> list[Label]:
    """Names or indices, separated by commas or repeated; a name may hold a comma where it stands alone."""
    parts = [part for text in given for part in ([text] if text in classes else text.split(","))]
    return [label(part.strip(), classes) for part in parts if part.strip()]


def router(service: Service) -> APIRouter:
    """POST /maps and GET /info."""
    routes = APIRouter()

    @routes.get("/info")
    async def info() -> JSONResponse:
        return JSONResponse({"bundles": [hosted.info(service.default_recipe) for hosted in service.hosts]})

    @routes.post("/maps")
    async def maps(request: Request) -> Response:
        with service.admitted(request):
            upload = await read_upload(request, service.bounds)
            query = Query.of([*request.query_params.multi_items(), *upload.fields])
            hosted = service.hosts.get(query.bundle)
            if hosted is None:
                names = ", ".join(h.name for h in service.hosts)
                raise Refusal(404, f"no bundle '{query.bundle}'; there are: {names}")
            return await service.within_time(request, _answer(service, hosted, upload.image, query))

    return routes


async def _answer(service: Service, hosted: HostedBundle, image: bytes, query: Query) -> Response:
    wish = query.wish(hosted, service.default_recipe)
    pixels = await service.decoded(image)
    outcome = await service.maps(hosted, query.id, pixels, wish)
    if query.format == "npz":
        body, kind = await service.on_thread(npz_answer, outcome, wish), "application/octet-stream"
    else:
        body, kind = await service.on_thread(json_answer, outcome, wish), "application/json"
    return Response(body, media_type=kind)


def json_answer(outcome: RequestOutcome, wish: MapsRequest) -> bytes:
    """Maps as 8-bit grey PNGs; scores of all classes, best first, where they were asked for."""
    hosted, result = outcome.hosted, outcome.result
    assert result.pixels is not None
    levels = quantise(result.maps, "uint8")
    answer: dict[str, object] = {
        "id": result.id,
        "bundle": hosted.name,
        "width": result.pixels.shape[1],
        "height": result.pixels.shape[0],
        "recipe": wish.recipe,
        "mode": wish.mode,
        "seconds": {"queued": round(result.queued, 4), "total": round(outcome.seconds, 4)},
        "scores": [] if outcome.scores is None else hosted.ranked(outcome.scores),
        "maps": [
            {"index": c, "name": hosted.classes[c], "png": grey_png(map_)}
            for c, map_ in zip(result.classes, levels, strict=True)
        ],
    }
    if result.trace is not None:
        answer["steps"] = _steps(result.trace, result.classes)
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def _steps(trace: Trace, classes: list[int]) -> dict[str, object]:
    return {
        "centres": trace.centres,
        "tiles": [
            {
                "box": tile.box,
                "takes": [classes[k] for k in tile.takes],
                "whole": tile.whole,
                "iterations": [
                    {
                        "erased_share": step.erased_share,
                        "mask": mask_png(step.erased),
                        "maps": [grey_png(map_) for map_ in step.maps],
                    }
                    for step in tile.iterations
                ],
            }
            for tile in trace.tiles
        ],
    }


def npz_answer(outcome: RequestOutcome, wish: MapsRequest) -> bytes:
    """The map store's own file (formats/npz.py), uint8."""
    hosted, result = outcome.hosted, outcome.result
    meta: dict[str, object] = {"iterations": result.iterations}
    if outcome.scores is not None:
        meta["scores"] = [float(s) for s in outcome.scores]
    settings = {
        "recipe": wish.recipe,
        "mode": wish.mode,
        "bundle": {"name": hosted.engine.manifest.name, "hash": hosted.engine.bundle.hash},
    }
    names = [hosted.classes[c] for c in result.classes]
    record = MapRecord(result.id, result.classes, names, result.maps, meta)
    return NpzCodec().encode(record, "uint8", {"settings": settings})
