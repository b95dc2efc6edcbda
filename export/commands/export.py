"""`infercam export`: options, a summary, and nothing else; the work is in onnx_source.py and archs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from infercam.engine.common.errors import ExportError

if TYPE_CHECKING:
    import numpy as np

    from infercam.engine.bundle import Bundle, Triple

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)

_TRIPLES = ("--mean", "--std")
_SAMPLES = 8


def register(app: typer.Typer) -> None:
    """Add `infercam export` to the app."""
    app.command("export", cls=_ExportCommand)(export)


class _ExportCommand(TyperCommand):
    """Lets --mean and --std take `a,b,c` as well as three values, negative ones included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_triples(args))


def join_triples(args: list[str]) -> list[str]:
    """`--mean a b c` as `--mean=a,b,c`."""
    joined: list[str] = []
    i = 0
    while i < len(args):
        values = args[i + 1 : i + 4]
        if (
            args[i] in _TRIPLES
            and len(values) == 3
            and all(_number(v.rstrip(",")) is not None for v in values)
        ):
            joined.append(f"{args[i]}={','.join(v.rstrip(',') for v in values)}")
            i += 4
        elif args[i] in _TRIPLES and values:
            joined.append(f"{args[i]}={values[0]}")
            i += 2
        else:
            joined.append(args[i])
            i += 1
    return joined


def _number(text: str) -> float | None:
    """A number, or a quotient of two such as 1/255."""
    try:
        top, _, bottom = text.partition("/")
        value = float(top) / float(bottom) if bottom else float(top)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def parse_triple(text: str, option: str) -> Triple:
    """`a,b,c`, or one number for all three channels; raises ExportError."""
    values = [_number(v) for v in text.replace(",", " ").split()]
    numbers = [v for v in values if v is not None]
    if len(numbers) != len(values) or len(numbers) not in (1, 3):
        raise ExportError(f"{option} takes three numbers (R,G,B order of --colour), not '{text}'")
    a, b, c = numbers * 3 if len(numbers) == 1 else numbers
    return (a, b, c)


def export(
    model: Annotated[Path | None, typer.Argument(help="ONNX classifier; leave out with --arch.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Bundle folder to write.")] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="Published architecture instead of MODEL: resnet38, resnet50, mobilenetv2."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="With --arch: its checkpoint.")] = None,
    output_stride: Annotated[
        int | None, typer.Option(help="With --arch: input pixels per response cell, where it has a choice.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="With --arch: which linear layer, where there are several (SC-CAM: 20, 200)."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Class names: a text file, one a line, or JSON. Default: the model's own, or VOC's 20."
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Subtracted from pixel * scale, for example 0.485,0.456,0.406 (default)."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Then divided by; default 0.229,0.224,0.225.")] = None,
    scale: Annotated[
        str | None, typer.Option(help="Multiplies the 0..255 pixel first; default 1/255.")
    ] = None,
    colour: Annotated[
        str | None, typer.Option(help="Channel order of the input: RGB (default) or BGR.")
    ] = None,
    input_name: Annotated[
        str | None, typer.Option(help="The picture, of a model with several inputs.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="The logits, of a model with several outputs.")] = None,
    multi_label: Annotated[
        bool | None,
        typer.Option(
            "--multi-label/--softmax", help="How scores become probabilities; default: as the model does."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help=f"Folder of images to verify on as well ({_SAMPLES} of them are used)."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest relative difference from the source.")
    ] = 1e-4,
    slim: Annotated[
        bool | None, typer.Option("--slim/--no-slim", help="Simplify the graph (default: yes).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the manifest; default: the model file's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Turn a frozen classifier into a bundle: an ONNX file, or a published architecture with its checkpoint.

    The classifier must end in global average pooling and a linear layer. The bundle is checked against the
    classifier before it is written.
    """
    from infercam.export.requirements import require_onnx

    if out is None:
        raise ExportError("say where to write the bundle: -o BUNDLE")
    if (model is None) == (arch is None):
        raise ExportError("give either MODEL.onnx or --arch NAME --weights FILE")
    require_onnx()
    common: dict[str, Any] = {
        "classes": _classes(classes),
        "multi_label": multi_label,
        "images": _images(images),
        "tolerance": tolerance,
        "name": name,
        "overwrite": overwrite,
    }
    own: dict[str, Any] = {"mean": mean, "std": std, "scale": scale, "colour": colour}
    own |= {"input-name": input_name, "output": output, "slim": slim}
    theirs = {"weights": weights, "output-stride": output_stride, "head": head}
    if model is not None:
        _refuse(theirs, "goes with --arch, not with an ONNX file")
        options = _onnx_options(mean, std, scale, colour) | {"slim": slim is not False}
        bundle = _from_onnx(model, out, input_name=input_name, output=output, **options, **common)
    else:
        _refuse(own, "goes with an ONNX file; an architecture has its own")
        bundle = _from_arch(str(arch), weights, out, output_stride=output_stride, head=head, **common)
    _summary(bundle)


def _refuse(options: dict[str, Any], why: str) -> None:
    given = [f"--{k}" for k, v in options.items() if v is not None]
    if given:
        raise ExportError(f"{given[0]} {why}")


def _onnx_options(mean: str | None, std: str | None, scale: str | None, colour: str | None) -> dict[str, Any]:
    """The options about the input that were given, parsed; what was not keeps export_onnx's default."""
    found: dict[str, Any] = {}
    if mean is not None:
        found["mean"] = parse_triple(mean, "--mean")
    if std is not None:
        found["std"] = parse_triple(std, "--std")
    if scale is not None:
        found["scale"] = _number(scale)
        if found["scale"] is None:
            raise ExportError(f"--scale takes a number such as 1/255 or 1, not '{scale}'")
    if colour is not None:
        found["colour"] = colour.upper()
        if found["colour"] not in ("RGB", "BGR"):
            raise ExportError(f"--colour is RGB or BGR, not '{colour}'")
    return found


def _classes(file: Path | None) -> list[str] | None:
    from infercam.engine.data.class_names import read_classes

    return None if file is None else read_classes(file)


def _images(folder: Path | None) -> list[np.ndarray]:
    """A few pictures spread over the folder; one that cannot be read is an error, as it would be in a run."""
    if folder is None:
        return []
    from infercam.engine.data.images import read_image
    from infercam.engine.data.sources import folder_source

    source = folder_source(folder)
    step = max(1, len(source) // _SAMPLES)
    return [read_image(item.path) for item in source[::step][:_SAMPLES]]


def _from_onnx(model: Path, out: Path, **options: Any) -> Bundle:
    from infercam.export.writing.onnx_source import export_onnx

    with stderr.status(f"exporting {escape(str(model))}: surgery, then verification against the model"):
        return export_onnx(model, out, **options)


def _from_arch(arch: str, weights: Path | None, out: Path, **options: Any) -> Bundle:
    if weights is None:
        raise ExportError(f"--arch {arch} needs its checkpoint: --weights FILE")
    from infercam.export.archs import export_arch

    with stderr.status(f"exporting {escape(arch)}: tracing, surgery, then verification against PyTorch"):
        return export_arch(arch, weights, out, **options)


def _summary(bundle: Bundle) -> None:
    m = bundle.manifest
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    few = ", ".join(m.classes[:4]) + (", …" if len(m.classes) > 4 else "")
    origin = m.source.get("classes_from")
    table.add_row("classes", escape(f"{len(m.classes)}: {few}" + (f" ({origin})" if origin else "")))
    table.add_row("scores", "multi-label (sigmoid)" if m.multi_label else "one label (softmax)")
    spec = m.input
    size = "any size" if spec.height is None else f"fixed {spec.height}x{spec.width}"
    batch = "any batch" if spec.dynamic_batch else "batch of 1"
    table.add_row("input", escape(f"'{spec.name}', {size}, {batch}, {spec.colour}"))
    table.add_row("pixels", f"(x * {spec.scale:.6g} - {_plain(spec.mean)}) / {_plain(spec.std)}")
    table.add_row("stride", f"{m.stride} pixels per response cell")
    if (v := m.verification) is not None:
        compared = sum("not compared" not in i for i in v.inputs)
        table.add_row(
            "verified",
            f"on {len(v.inputs)} inputs, {compared} against the source; errors: mean of the response "
            f"{v.max_score_error:.1e}, source {v.max_source_error:.1e} (relative, at most {v.tolerance:g})",
        )
    entry = m.files[m.graphs["fp32"]]
    total = sum(f.size for f in m.files.values())
    table.add_row("file", f"{m.graphs['fp32']}, {total / 1e6:.1f} MB, sha256 {entry.sha256[:16]}…")
    stdout.print(f"[green]wrote[/green] {escape(str(bundle.path))}", soft_wrap=True)
    stdout.print(table)
    for note in m.source.get("notes", []):
        stdout.print(f"note: {escape(note)}", soft_wrap=True)


def _plain(values: Triple) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"
