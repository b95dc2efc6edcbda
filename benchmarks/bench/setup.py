"""From the command's options to a plan: the bundle, the pictures and their labels, who is to be measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from infercam.benchmarks.bench import pictures
from infercam.benchmarks.bench.benchmark import PARTS, BenchPlan
from infercam.benchmarks.bench.contestants import Field, Part
from infercam.benchmarks.bench.pictures import Pictures
from infercam.benchmarks.bench.settings import BenchSettings
from infercam.engine.api import Engine
from infercam.engine.backends import BACKENDS
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import InputError
from infercam.engine.data import voc as voc_tree
from infercam.engine.demo.ablation import BUNDLE as DEMO_BUNDLE
from infercam.engine.inputs import SourceSettings
from infercam.engine.method.recipe import RECIPES

DEMO = ("demo", "demo-bundle")
"""Names of the embedded bundle, where no folder is called so."""
QUICK_IMAGES, QUICK_ROUNDS, QUICK_RECIPES = 4, 2, "released,fast"


def make_plan(bundle_path: Path, out: Path, s: BenchSettings, say: Callable[[str], None]) -> BenchPlan:
    """Raises BundleError, InputError, and whatever keeps every backend from running the bundle here."""
    demo = not bundle_path.exists() and str(bundle_path) in DEMO
    bundle = Bundle.load(DEMO_BUNDLE if demo else bundle_path)
    recipes = chosen("recipe", s.recipes or (QUICK_RECIPES if s.quick else None), tuple(RECIPES))
    backends = chosen("backend", s.backends, BACKENDS)
    parts: list[Part] = [p for p in PARTS if p in chosen("part", s.only, get_args(Part))]
    counts = _counts(s.counts)
    if s.model is not None and not s.model.is_file():
        raise InputError(f"{s.model}: no such file")
    say("looking at the pictures")
    found = _pictures(s, bundle, out, min(s.images, QUICK_IMAGES) if s.quick else s.images, say)
    few = min(len(found), s.few or max(2, len(found) // 4))
    field = Field(
        bundle=bundle,
        pictures=pictures.save(found, out),
        digest=found.digest,
        count=len(found),
        few=few,
        recipes=recipes,
        model=s.model,
        arch=s.arch,
        precision=s.precision,
        threads=s.threads,
        backends=backends,
    )
    rounds = min(s.rounds, QUICK_ROUNDS) if s.quick else s.rounds
    return BenchPlan(bundle, field, found, rounds, parts, s.quick, counts)


def chosen(what: str, text: str | None, known: tuple[str, ...]) -> list[str]:
    """Names separated by commas, in the order of `known`; all of them for None. Raises InputError for others."""
    if text is None:
        return list(known)
    names = [n.strip() for n in text.split(",") if n.strip()]
    for name in names:
        if name not in known:
            raise InputError(f"no {what} {name!r}; there are: {', '.join(known)}")
    if not names:
        raise InputError(f"name at least one {what}: {', '.join(known)}")
    return [n for n in known if n in names]


def _counts(text: str | None) -> list[int]:
    try:
        counts = [int(n) for n in text.split(",")] if text else []
    except ValueError:
        counts = [0]
    if counts and (min(counts) < 1 or len(set(counts)) < 2):
        raise InputError(f"--counts {text}: write two or more different numbers, separated by commas")
    return counts


def _pictures(
    s: BenchSettings, bundle: Bundle, out: Path, count: int, say: Callable[[str], None]
) -> Pictures:
    with Engine.load(bundle, "auto", s.threads, s.precision) as engine:
        if s.voc is None and s.split is None and s.folder is None and s.list_file is None:
            if s.labels or s.gt or s.root:
                raise InputError("--labels, --gt and --root go with images: --voc, --folder or --list")
            demo = bundle.hash == Bundle.load(DEMO_BUNDLE).hash
            folder = out / "pictures"
            return pictures.synthetic(
                engine, folder, count, demo, lambda n: say(f"drawing scenes: {n} of {count}")
            )
        try:
            source = SourceSettings(
                images=s.folder, voc=s.voc, split=s.split, list_file=s.list_file, root=s.root
            ).open()
        except InputError as e:
            raise InputError(str(e).replace("--images DIR", "--folder DIR")) from None
        if source.place is not None:
            raise InputError("bench reads images of this machine; copy some here")
        masks = s.gt or (source.root / voc_tree.MASKS if s.voc else None)
        return pictures.given(engine, source, count, s.labels, s.voc, masks)
