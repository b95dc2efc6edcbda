"""The plain PyTorch loop as a contestant: over the module itself, or over the exported graph in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infercam.benchmarks.bench.job import NO_MODEL, BenchJob, NotMeasured
from infercam.benchmarks.bench.pictures import Pictures
from infercam.benchmarks.bench.running import RunningContestant
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import MissingExtra

if TYPE_CHECKING:
    from torch import nn

    from infercam.export.archs import Classifier


def loop_contestant(job: BenchJob) -> RunningContestant:
    """Raises MissingExtra without torch, NotMeasured without a classifier that the loop can call."""
    require_torch("the PyTorch loop", job.threads)
    from infercam.benchmarks.yardsticks import pytorch_loop

    bundle = Bundle.load(job.bundle)
    shapes: Counter[tuple[int, int]] = Counter()
    if job.network == "onnx":
        module, spec, name = onnx_network(bundle, job.threads), bundle.manifest.input, "ONNX Runtime"
    else:
        classifier = classifier_of(job, bundle)
        module, spec, name = on_best_device(classifier.module), classifier.input, "PyTorch"
    respond = module.forward_cam

    def counted(x: Any) -> Any:
        shapes[x.shape[-2], x.shape[-1]] += x.shape[0]
        with autocast(x, job.autocast):
            return respond(x).float()

    module.forward_cam = counted

    def work(pictures: Pictures, out: Path) -> None:
        pytorch_loop.run(
            module,
            pictures.items(len(pictures)),
            pictures.labels(),
            out,
            job.recipe,
            job.mode,
            classes=len(bundle.manifest.classes),
            input_spec=spec,
        )

    return RunningContestant(work, shapes, name, torch_details)


def require_torch(what: str, threads: int | None) -> None:
    """Raises MissingExtra without torch; sets its number of threads, where one was asked for."""
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "train", what) from None
    if threads is not None:
        torch.set_num_threads(threads)


def autocast(x: Any, wanted: bool) -> Any:
    """A context in which PyTorch computes in bf16 where it thinks that safe; or one of no effect."""
    import torch

    return torch.autocast(x.device.type, torch.bfloat16) if wanted else nullcontext()


def torch_details() -> dict[str, Any]:
    import torch

    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "cuda": torch.cuda.is_available()}


def classifier_of(job: BenchJob, bundle: Bundle) -> Classifier:
    """The bundle's classifier as a PyTorch module; raises NotMeasured where it is not given or is another one."""
    if job.model is None:
        raise NotMeasured(NO_MODEL)
    from infercam.benchmarks.yardsticks.pytorch_loop import load_classifier

    classifier = load_classifier(job.arch, job.model)
    if classifier.keep_classes is not None:
        raise NotMeasured(f"{job.model}: the plain loop needs a classifier whose outputs are all classes")
    if list(classifier.classes) != bundle.manifest.classes:
        raise NotMeasured(f"{job.model}: its classes are not the bundle's: another classifier?")
    classifier.module.eval()
    return classifier


def on_best_device(module: nn.Module) -> Any:
    import torch

    return module.to("cuda" if torch.cuda.is_available() else "cpu")


def onnx_network(bundle: Bundle, threads: int | None) -> Any:
    """The bundle's response graph as the loop's network, in one ONNX Runtime session with the runtime's defaults."""
    import onnxruntime as ort
    import torch
    from torch import nn

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    have = ort.get_available_providers()
    wanted = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in have]
    session = ort.InferenceSession(str(bundle.graph()), options, providers=wanted)
    output, given = bundle.manifest.response, bundle.manifest.input.name

    class LoopNetwork(nn.Module):
        def forward_cam(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.from_numpy(session.run([output], {given: x.numpy()})[0]))

    return LoopNetwork()
