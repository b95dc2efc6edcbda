"""Every way of `infercam refine` and their combinations against masks: quality and CPU seconds a photo, side by side.

    python -m infercam.benchmarks.quality.refine MAPS --saliency S --voc ROOT --split val

Maps and photos are held in memory; seconds are this process's own (CPU, not the clock: other jobs may run beside it),
reading and writing left out. Rows with S use a saliency network, which saw saliency masks. Writes results/NAME.json.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import typer
from rich.console import Console

from infercam.benchmarks.common import write_result
from infercam.engine.data.images import read_image
from infercam.engine.data.sources import voc_source
from infercam.engine.evaluation.evaluate import EvalResult, compare, evaluate, read_mask, voc_ground_truth
from infercam.engine.store.mapstore import MapStore
from infercam.trainer.affinity.crf import CrfConfig
from infercam.trainer.refine.fuse import fused
from infercam.trainer.refine.refine import by_photo
from infercam.trainer.refine.settings import ParConfig, RefineConfig
from infercam.trainer.saliency.files import read_saliency, saliency_file

console = Console(stderr=True, highlight=False)


def rows() -> dict[str, RefineConfig]:
    par, crf = ParConfig(), CrfConfig()
    return {
        "maps": RefineConfig(),
        "PAR": RefineConfig(par=par),
        "PAR, stride 4, the paper's 10 steps": RefineConfig(par=ParConfig(stride=4, iterations=10)),
        "CRF": RefineConfig(crf=crf),
        "PAR, CRF": RefineConfig(par=par, crf=crf),
        "S mean": RefineConfig(saliency="mean"),
        "S product": RefineConfig(saliency="product"),
        "S share": RefineConfig(saliency="share"),
        "S mean, PAR": RefineConfig(saliency="mean", par=par),
        "S product, PAR": RefineConfig(saliency="product", par=par),
        "S share, PAR": RefineConfig(saliency="share", par=par),
        "S mean, CRF": RefineConfig(saliency="mean", crf=crf),
    }


class _Photo(NamedTuple):
    maps: np.ndarray
    classes: list[int]
    image: np.ndarray
    saliency: np.ndarray | None
    mask: np.ndarray


def main(
    maps: Annotated[Path, typer.Argument(help="map store")],
    voc: Annotated[Path, typer.Option(help="VOC tree")],
    split: Annotated[str, typer.Option()] = "val",
    saliency: Annotated[Path | None, typer.Option(help="folder of saliency PNGs")] = None,
    only: Annotated[str | None, typer.Option(help="only rows whose name holds this, and the maps")] = None,
    every: Annotated[int, typer.Option(min=1, help="every so many-th photo")] = 1,
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "refine",
) -> None:
    """Score every row, print it, write results/NAME.json."""
    cv2.setNumThreads(1)
    photos = _photos(MapStore.open(maps), voc, split, saliency, every)
    base: EvalResult | None = None
    out: list[dict[str, Any]] = []
    for row, config in rows().items():
        skip = config.saliency is not None and saliency is None
        if skip or (only is not None and row != "maps" and only not in row):
            continue
        seconds: list[float] = []
        result = evaluate(_refined(photos, config, seconds), len(MapStore.open(maps).info.classes))
        base = base or result
        out.append(_figures(row, config, result, base, seconds))
        console.print(_line(out[-1]))
    write_result(name, {"images": len(photos), "split": split, "maps": maps.name, "rows": out})


def _photos(store: MapStore, voc: Path, split: str, saliency: Path | None, every: int) -> list[_Photo]:
    source, truth = voc_source(voc, split)[:], dict(voc_ground_truth(voc, split).pairs)
    found = []
    for item in list(source)[::every]:
        record, mask = store.read(item.id), read_mask(truth[item.id])
        salient = None if saliency is None else read_saliency(saliency_file(saliency, item.id), mask.shape)
        found.append(_Photo(record.maps, record.classes, read_image(Path(item.path)), salient, mask))
    return found


def _refined(
    photos: list[_Photo], config: RefineConfig, seconds: list[float]
) -> Iterator[tuple[np.ndarray, list[int], np.ndarray]]:
    """What `evaluate` counts; the CPU seconds of each photo go to `seconds`."""
    for photo in photos:
        started = time.process_time()
        maps = photo.maps
        if config.saliency is not None and photo.saliency is not None:
            maps = fused(maps, photo.saliency, config.saliency)
        maps = by_photo(maps, photo.image, config)
        seconds.append(time.process_time() - started)
        yield maps, photo.classes, photo.mask


def _figures(
    row: str, config: RefineConfig, result: EvalResult, base: EvalResult, seconds: list[float]
) -> dict[str, Any]:
    gain = compare(base, result)
    return {
        "row": row,
        "config": config.model_dump(mode="json"),
        "miou_all": result.all.miou,
        "miou_frequent": (result.frequent or result.all).miou,
        "threshold": (result.frequent or result.all).threshold,
        "gain_all": gain["all"].difference,
        "gain_all_std": gain["all"].interval.std,
        "gain_frequent": gain["frequent"].difference,
        "gain_frequent_std": gain["frequent"].interval.std,
        "groups": {k: g.own.miou for k, g in result.groups.items()},
        "cpu_seconds_per_photo": {"mean": float(np.mean(seconds)), "median": float(np.median(seconds))},
    }


def _line(row: dict[str, Any]) -> str:
    groups = " / ".join(f"{100 * v:.1f}" for v in row["groups"].values())
    return (
        f"{row['row']:36s} mIoU {100 * row['miou_frequent']:.1f} ({100 * row['gain_frequent']:+.1f} ± "
        f"{100 * row['gain_frequent_std']:.1f}) frequent, {100 * row['miou_all']:.1f} "
        f"({100 * row['gain_all']:+.1f} ± {100 * row['gain_all_std']:.1f}) all, {groups}, "
        f"{1000 * row['cpu_seconds_per_photo']['mean']:.0f} ms"
    )


if __name__ == "__main__":
    typer.run(main)
