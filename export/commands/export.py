"""`infercam export`: options and a summary; the work is in make_bundle.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infercam.engine.common.errors import ExportError
from infercam.engine.common.options import options
from infercam.export.commands.triples import TriplesCommand
from infercam.export.make_bundle import ExportSettings, make_bundle

if TYPE_CHECKING:
    from infercam.engine.bundle import Bundle, Triple

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add `infercam export` to the app."""
    app.command("export", cls=TriplesCommand)(options(export))


def export(
    settings: ExportSettings,
    model: Annotated[Path | None, typer.Argument(help="ONNX classifier; leave out with --arch.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Bundle folder to write.")] = None,
) -> None:
    """Turn a frozen classifier into a bundle: an ONNX file, or a published architecture with its checkpoint.

    The classifier must end in global average pooling, or a class token, and linear layers, with norms and activations
    between them or none. The bundle is checked against the classifier before it is written.
    """
    if out is None:
        raise ExportError("say where to write the bundle: -o BUNDLE")
    of, how = (settings.arch, "tracing") if model is None else (model, "reading")
    with stderr.status(f"exporting {escape(str(of))}: {how}, surgery, then verification against the source"):
        bundle = make_bundle(model, out, settings)
    _summary(bundle)


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
    if spec.smallest > 1 or spec.multiple > 1:
        multiples = f", multiples of {spec.multiple}" if spec.multiple > 1 else ""
        size = f"sides of {spec.smallest} pixels and more{multiples}"
    batch = "any batch" if spec.dynamic_batch else "batch of 1"
    table.add_row("input", escape(f"'{spec.name}', {size}, {batch}, {spec.colour}"))
    table.add_row("pixels", f"(x * {spec.scale:.6g} - {_plain(spec.mean)}) / {_plain(spec.std)}")
    if m.decomposition == "none":
        table.add_row("map", f"{m.method}: customary, its mean is not the scores")
    if m.affinity is not None:
        table.add_row("affinity", f"of the last {m.affinity} blocks' self-attention")
    table.add_row("stride", f"{m.stride} pixels per response cell")
    if (v := m.verification) is not None:
        compared = sum("not compared" not in i for i in v.inputs)
        mean = "" if v.max_score_error is None else f"mean of the response {v.max_score_error:.1e}, "
        table.add_row(
            "verified",
            f"on {len(v.inputs)} inputs, {compared} against the source; errors: {mean}"
            f"source {v.max_source_error:.1e} (relative, at most {v.tolerance:g})",
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
