"""Exporting a PyTorch classifier: module -> ONNX -> response graph -> verified bundle."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from infercam.engine.bundle import Bundle, InputSpec, Triple
from infercam.engine.common.errors import ExportError, MissingExtra
from infercam.engine.common.validation import first_problem
from infercam.export.writing.pixels import Pixels, input_pixels

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

    from infercam.export.graph.dynamic import SizeWishes
    from infercam.export.graph.surgery import ResponseGraph

INPUT, OUTPUT = "image", "scores"
OPSET = 18  # what PyTorch's exporter writes natively


def from_torch(
    module: nn.Module,
    out: str | Path,
    *,
    classes: Sequence[str],
    example_size: tuple[int, int] = (224, 224),
    mean: Triple | None = None,
    std: Triple | None = None,
    scale: float | None = None,
    colour: str = "RGB",
    multi_label: bool | None = None,
    name: str | None = None,
    source: Mapping[str, Any] | None = None,
    keep_classes: Sequence[int] | None = None,
    images: Sequence[np.ndarray] = (),
    tolerance: float = 1e-4,
    fold_batch_norm: bool = True,
    attention: bool = False,
    recipro: bool = False,
    affinity: int = 0,
    overwrite: bool = False,
) -> Bundle:
    """Write a bundle from any module that ends in a global average pooling or class token and linear layers (README).

    `module` maps N×3×H×W float32 to N×C scores; a sigmoid or softmax that ends it is left out of the bundle,
    whose scores are the logits before it.
    It is run in evaluation mode without gradients, and every submodule's training flag is put back.
    The network's input is `(pixel * scale - mean) / std` with 0..255 pixels in `colour` order; where none of the
    three is given they are ImageNet's, or plain pixels for a module that evidently normalises by itself.

    classes: the C names, or those of `keep_classes` where only some outputs are wanted.
    example_size: (height, width) to trace at; the bundle takes any size where the module does.
    multi_label: scores are read through a sigmoid (else a softmax); default: unless the module ends in softmax.
    images: (H, W, 3) uint8 RGB pictures to verify on, besides the built-in ones.
    attention: of a class-token head: the map times the last block's attention from the class token to the patches.
    recipro: of any head, and of one size: what it answers to one position of the last feature map at a time.
    affinity: the self-attention among patches, averaged over so many last blocks, as a further output.
    source: where the weights come from, recorded in the manifest as it is.
    fold_batch_norm: batch norms that PyTorch's exporter left go into the layer before them, or become a scale and a
    shift.

    Raises ExportError where the module cannot be traced, has no such head, or does not agree with its
    response graph within `tolerance`; MissingExtra without torch or onnx.
    """
    from infercam.export.requirements import require_onnx

    require_onnx()
    from infercam.export.graph.dynamic import SizeWishes
    from infercam.export.graph.wishes import MapWishes
    from infercam.export.writing.bundle_writer import write_as_it_agrees, write_bundle
    from infercam.export.writing.pinned import pinned

    user = Pixels(mean, std, scale)
    _spec_of(user.filled(), colour)  # what is wrong in it is said before the work
    with evaluation_mode(module):
        check_outputs(module, classes, example_size, keep_classes)
        options: dict[str, Any] = {
            "keep_classes": keep_classes,
            "fold_batch_norm": fold_batch_norm,
            "maps": MapWishes(attention=attention, recipro=recipro, affinity=affinity),
        }
        sources = (
            partial(_surgery, pinned(model, example_size), options) for model in to_onnx(module, example_size)
        )

        def write(graph: ResponseGraph) -> Bundle:
            pixels, notes = input_pixels(graph, user)
            if graph.takes(*example_size):  # it ran there, and perhaps only there
                graph = replace(graph, source_size=graph.source_size or example_size)
            return write_bundle(
                Path(out),
                replace(graph, notes=[*graph.notes, *notes]),
                classes=classes,
                input_spec=_spec_of(pixels, colour),
                multi_label=graph.multi_label if multi_label is None else multi_label,
                source={"kind": "torch", "module": type(module).__qualname__, **(source or {})},
                source_scores=scorer(module, keep_classes),
                images=images,
                tolerance=tolerance,
                name=name,
                overwrite=overwrite,
            )

        return write_as_it_agrees(sources, write, SizeWishes(own=example_size))


def _surgery(model: onnx.ModelProto, options: dict[str, Any], sizes: SizeWishes) -> ResponseGraph:
    from infercam.export.graph.surgery import response_graph

    return response_graph(model, sizes=sizes, **options)


def _spec_of(pixels: tuple[Sequence[float], Sequence[float], float], colour: str) -> InputSpec:
    """The preprocessing as a bundle states it; raises ExportError for values that it cannot have."""
    mean, std, scale = pixels
    try:
        return InputSpec.model_validate({"mean": mean, "std": std, "scale": scale, "colour": colour})
    except ValidationError as e:
        raise ExportError(first_problem(e, "input")) from None


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Clear every submodule's training flag, without gradients; put the flags back afterwards.

    The flags are set directly: some published classifiers override `train()` with side effects.
    """
    torch = import_torch()
    before = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in before:
            m.training = False
        with torch.no_grad():
            yield
    finally:
        for m, flag in before:
            m.training = flag


def check_outputs(
    module: nn.Module,
    classes: Sequence[str],
    size: tuple[int, int],
    keep_classes: Sequence[int] | None = None,
) -> None:
    """Run the module once and raise ExportError unless it gives float32 N×C scores for those classes."""
    torch = import_torch()
    example = example_input(module, size)
    try:
        scores = module(example)
    except Exception as e:
        raise ExportError(
            f"the module cannot run a {tuple(example.shape)} input: {type(e).__name__}: {first_line(e)}"
        ) from e
    if not isinstance(scores, torch.Tensor):
        raise ExportError(
            f"the module returns a {type(scores).__name__}, not a tensor of scores; "
            "wrap it in a module whose forward returns the N×C scores alone"
        )
    if scores.ndim != 2 or scores.shape[0] != example.shape[0]:
        raise ExportError(f"the module gives {tuple(scores.shape)} for a batch of 2, not (2, classes) scores")
    outputs = scores.shape[1]
    if keep_classes is not None:
        bad = [i for i in keep_classes if not 0 <= i < outputs]
        if bad:
            raise ExportError(f"keep_classes names output {bad[0]}, but the module has {outputs}")
        outputs = len(keep_classes)
    if outputs != len(classes):
        raise ExportError(f"the module scores {outputs} classes but {len(classes)} names are given")


def to_onnx(module: nn.Module, example_size: tuple[int, int]) -> Iterator[onnx.ModelProto]:
    """ONNX graphs of a module in evaluation mode, the best first: free in batch, height and width, then fixed ones.

    Of PyTorch's two exporters the torch.export-based one is tried first, the older tracing one second, each when it
    is its turn. Raises ExportError with both exporters' reasons where neither can do it.
    """
    example = example_input(module, example_size)
    traced = _with_global_pooling(module)
    fixed: list[onnx.ModelProto] = []
    reasons: list[str] = []
    for title, export in (("torch.export", _export_dynamo), ("tracing", _export_traced)):
        try:
            with quiet():
                model = export(traced, example)
        except MissingExtra:
            raise
        except Exception as e:  # the exporters raise whatever the module's own code and theirs raise
            reasons.append(f"{title}: {type(e).__name__}: {first_line(e)}")
            continue
        if _has_free_sizes(model):
            yield model
        else:
            fixed.append(model)
    yield from fixed
    if len(reasons) == 2:
        raise ExportError(f"PyTorch cannot export this module to ONNX ({'; '.join(reasons)})")


def scorer(
    module: nn.Module, keep_classes: Sequence[int] | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """The module as a function of arrays: N×3×H×W float32 -> logits N×C float32 (of `keep_classes`, in order).

    It raises verify.SourceLimit for a shape that the module cannot run.
    """
    torch = import_torch()
    from infercam.export.writing.verify import SourceLimit

    device = _device(module)
    columns = None if keep_classes is None else list(keep_classes)

    def scores(batch: np.ndarray) -> np.ndarray:
        activation = _final_activation()
        try:
            with torch.no_grad(), activation:
                output = module(torch.from_numpy(batch).to(device))
        except (
            RuntimeError,
            AssertionError,
            ValueError,
        ) as e:  # the latter two: transformers that check their sizes
            raise SourceLimit(first_line(e)) from None
        result: np.ndarray = activation.logits(output).float().cpu().numpy()
        return result if columns is None else result[:, columns]

    return scores


def example_input(module: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    """A random 2×3×H×W input on the module's device; raises ExportError unless its weights are float32.

    The batch is 2 because torch.export takes a size of 1 for a constant.
    """
    torch = import_torch()
    dtypes = {p.dtype for p in module.parameters() if p.dtype.is_floating_point}
    if dtypes - {torch.float32}:
        wrong = next(iter(dtypes - {torch.float32}))
        raise ExportError(f"the module's weights are {wrong}; call module.float() before exporting")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, *size, generator=generator).to(_device(module))


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the exporters' notes (deprecation, tracing, absent torchvision): the result is verified anyway."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _export_dynamo(module: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    import torch

    try:
        import onnxscript  # noqa: F401 - the exporter needs it, and says so in a long traceback
    except ImportError:
        raise MissingExtra("onnxscript", "export", "exporting from PyTorch") from None
    free = {0: torch.export.Dim("N"), 2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=(free,),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:  # pragma: no cover - only when told to write a file
        raise ExportError("PyTorch's exporter returned nothing")
    return program.model_proto


def _export_traced(module: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    import onnx
    import torch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            (example,),
            file,
            dynamo=False,
            dynamic_axes={INPUT: {0: "N", 2: "H", 3: "W"}, OUTPUT: {0: "N"}},
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
        )
        return onnx.load(file)


def _with_global_pooling(module: nn.Module) -> nn.Module:
    """Wrap a module so that `avg_pool2d` over the whole map, as psa writes it, is traced as a mean.

    `F.avg_pool2d(x, kernel_size=(x.size(2), x.size(3)))` has a kernel that depends on the input, which ONNX
    cannot say: one exporter would freeze the size, the other refuses.
    """
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    class GlobalPooling(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if func is F.avg_pool2d and args:
                kernel = args[1] if len(args) > 1 else kwargs.get("kernel_size")
                if _is_whole_map(args[0], kernel):
                    return args[0].mean((2, 3), keepdim=True)
            return func(*args, **kwargs)

    class Traced(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module
            self.training = False

        def forward(self, image: torch.Tensor) -> Any:
            with GlobalPooling():
                return self.module(image)

    return Traced()


def _final_activation() -> Any:
    """A mode that remembers the last sigmoid or softmax, so that scores can be had from before it."""
    from torch.overrides import TorchFunctionMode

    class FinalActivation(TorchFunctionMode):
        before: Any = None
        after: Any = None

        def __torch_function__(
            self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if getattr(func, "__name__", "") in ("sigmoid", "softmax", "log_softmax") and args:
                self.before, self.after = args[0], result
            return result

        def logits(self, output: torch.Tensor) -> torch.Tensor:
            return self.before if output is self.after else output

    return FinalActivation()


def _is_whole_map(x: torch.Tensor, kernel: Any) -> bool:
    """Whether a pooling kernel was computed from the size of `x`, not a constant that happens to equal it."""
    if not isinstance(kernel, (tuple, list)) or len(kernel) != 2 or x.ndim != 4:
        return False
    if all(type(k) is int for k in kernel):
        return False
    return bool(kernel[0] == x.shape[2]) and bool(kernel[1] == x.shape[3])


def _has_free_sizes(model: onnx.ModelProto) -> bool:
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return len(dims) == 4 and all(not dims[i].HasField("dim_value") for i in (0, 2, 3))


def _device(module: nn.Module) -> torch.device:
    import torch

    return next((p.device for p in module.parameters()), torch.device("cpu"))


def import_torch() -> Any:
    """The torch module; raises MissingExtra if it is not installed."""
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "train", "exporting from PyTorch") from None
    return torch


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else "no details"
