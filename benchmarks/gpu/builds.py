"""What a TensorRT-RTX plan costs to build, without a GPU, beside what ONNX Runtime costs to start on the CPU.

    python -m infercam.benchmarks.gpu.builds BUNDLE... [--arch resnet50] [--profiles 4] [--to FOLDER]

Each graph (fp32, and what else the bundle has) is parsed and built in a fresh process for the ladder's profiles:
CPU seconds of parsing and building, peak memory of the process and of one that only imports the library, size of the
plan. ONNX Runtime: CPU seconds until the session is there, in a process of its own, one thread. `--arch`: the
project's own network, with random weights, in fp32 and fp16. FOLDER/builds.json is written after every graph.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from infercam.benchmarks.common import RESULTS, run_command, write_result
from infercam.engine.bundle import Bundle, Manifest, file_entry
from infercam.engine.common.child import Child
from infercam.engine.common.errors import ExportError, InputError
from infercam.engine.data.voc import CLASSES
from infercam.engine.runners.plan import PlanOptions, Profile
from infercam.engine.runners.tensorrt_api import require_tensorrt
from infercam.export.plan.profiles import PROFILES, ladder_profiles

ARCHS = ("mobilenetv2", "resnet38", "resnet50")
console = Console(stderr=True, highlight=False)


def peak_mb() -> int:
    """Of this process so far, in megabytes; not by getrusage, which counts the parent that started it too (Linux)."""
    text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return round(int(text.split("VmHWM:")[1].split()[0]) / 1024)


# -- in processes of their own ---------------------------------------------------------------------------------
def build(folder: Path, precision: str, profiles: list[Profile], targets: str | None) -> dict[str, Any]:
    """Parse and build one graph; what it cost, or the one line that says why not."""
    from infercam.export.plan.builder import PlanBuilder
    from infercam.export.plan.rtx import rtx_maker

    bundle = Bundle.load(folder)
    maker = rtx_maker(targets)
    started_with = peak_mb()
    builder = PlanBuilder(require_tensorrt("this", "tensorrt-rtx"), bundle.manifest, maker)
    began, cpu = time.monotonic(), time.process_time()
    try:
        network = builder.parse(bundle.graph(precision))
        parsed = time.process_time() - cpu
        plan = builder.build(network, precision, profiles, PlanOptions())  # type: ignore[arg-type]
    except ExportError as e:
        return {"refused": str(e).split(": ", 1)[1]}
    return {
        "parse_cpu_s": round(parsed, 2),
        "build_cpu_s": round(time.process_time() - cpu - parsed, 2),
        "wall_s": round(time.monotonic() - began, 2),
        "plan_mb": round(len(memoryview(plan)) / 1e6, 1),
        "peak_mb": peak_mb(),
        "peak_mb_before": started_with,
    }


def start_session(folder: Path, precision: str) -> dict[str, Any]:
    """ONNX Runtime's session of the same graph on the CPU."""
    import onnxruntime as ort

    bundle = Bundle.load(folder)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    started_with, cpu = peak_mb(), time.process_time()
    try:
        ort.InferenceSession(str(bundle.graph(precision)), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # bfloat16 and fp8: no kernels
        return {"refused": " ".join(str(e).split())[:200]}
    return {
        "start_cpu_s": round(time.process_time() - cpu, 2),
        "peak_mb": peak_mb(),
        "peak_mb_before": started_with,
    }


def _in_a_process(function: str, *question: Any) -> Any:
    with Child(f"infercam.benchmarks.gpu.builds:{function}") as child:
        return child.ask(*question)


# -- what is measured ------------------------------------------------------------------------------------------
def random_bundle(arch: str, folder: Path) -> Bundle:
    """The project's own network with random weights, exported, with an fp16 graph beside (converted, not judged)."""
    import onnx
    import torch

    from infercam.export import from_torch
    from infercam.export.archs.mobilenetv2 import MobileNetV2
    from infercam.export.archs.resnet38 import ResNet38
    from infercam.export.archs.resnet50 import ResNet50
    from infercam.export.precision.half import FP16, to_half

    torch.manual_seed(0)
    module = {"mobilenetv2": MobileNetV2, "resnet38": ResNet38, "resnet50": ResNet50}[arch](len(CLASSES))
    for part in module.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)  # the pictures must reach the end
    bundle = from_torch(module, folder, classes=CLASSES, name=f"{arch}, random weights")
    file = folder / "response.fp16.onnx"
    onnx.save(to_half(onnx.load(str(bundle.graph())), FP16).model, str(file))
    manifest = bundle.manifest.model_dump()
    manifest["graphs"]["fp16"] = file.name
    manifest["files"][file.name] = file_entry(file).model_dump()
    (folder / "manifest.json").write_text(Manifest.model_validate(manifest).model_dump_json())
    return Bundle.load(folder)


def measure(bundle: Bundle, count: int, targets: str | None) -> Iterator[dict[str, Any]]:
    """Every graph of the bundle, one row each."""
    profiles = ladder_profiles(bundle.manifest, count)
    for precision, file in bundle.manifest.graphs.items():
        yield {
            "network": bundle.manifest.name,
            "precision": precision,
            "graph_mb": round(bundle.manifest.files[file].size / 1e6, 1),
            "profiles": [str(p) for p in profiles],
            "tensorrt_rtx": _in_a_process("build", bundle.path, precision, profiles, targets),
            "onnxruntime_cpu": _in_a_process("start_session", bundle.path, precision),
        }


def main(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundles; every graph of each is built.")
    ] = None,
    arch: Annotated[
        list[str] | None, typer.Option(help=f"Random weights: {', '.join(ARCHS)}; repeats.")
    ] = None,
    profiles: Annotated[int, typer.Option(min=1, help="Of the ladder's sizes, at most.")] = PROFILES,
    targets: Annotated[
        str | None, typer.Option(help="Cards, as sm86,sm120; default: all from 8.0 on.")
    ] = None,
    to: Annotated[Path, typer.Option(help="Folder for builds.json.")] = RESULTS,
) -> None:
    """Build every graph with TensorRT-RTX, without a GPU, and start it in ONNX Runtime; write what both cost."""
    wrong = [name for name in arch or [] if name not in ARCHS]
    if wrong or not (bundles or arch):
        raise InputError(f"give bundles, or --arch of: {', '.join(ARCHS)}")
    require_tensorrt("this benchmark", "tensorrt-rtx")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        found = (Bundle.load(path) for path in bundles or [])
        random = (random_bundle(name, Path(made) / name) for name in arch or [])
        for bundle in chain(found, random):
            for row in measure(bundle, profiles, targets):
                rows.append(row)
                console.print(row["network"], row["precision"], row["tensorrt_rtx"], row["onnxruntime_cpu"])
                content = {"tensorrt_rtx": version("tensorrt-rtx-cu13"), "targets": targets, "builds": rows}
                write_result("builds", content, to)


if __name__ == "__main__":
    run_command(main)
