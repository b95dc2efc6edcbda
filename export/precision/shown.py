"""What `infercam precision` shows: what is being tried, and the figures of what was found, as tables."""

from __future__ import annotations

from rich.markup import escape
from rich.status import Status
from rich.table import Table

from infercam.engine.bundle import Manifest, PrecisionReport, RuntimeReport


class Trying:
    """Shows what is being tried, with the count of what has been."""

    def __init__(self, status: Status, precision: str) -> None:
        self.status = status
        self.precision = precision
        self.count = 0

    def __call__(self, what: str) -> None:
        self.count += 1
        self.status.update(f"{self.precision}, {self.count}: {escape(what)}")


def report_table(manifest: Manifest, name: str, report: PrecisionReport | RuntimeReport) -> Table:
    """The maps' agreement; of a graph its file and what stayed in other precisions, of a runtime its speed."""
    table = _agreement(report)
    if isinstance(report, RuntimeReport):
        table.add_row("speed", f"{report.speed:.2f} times ONNX Runtime in fp32, in CPU seconds of one thread")
        if report.kept:
            table.add_row("kept", f"the first {report.kept} layers in fp32")
        table.add_row("with", escape(f"{report.runtime} {report.version}, {report.cpu}"))
        return table
    file = manifest.graphs[name]
    size, full = (manifest.files[manifest.graphs[p]].size for p in (name, "fp32"))
    table.add_row(
        "file", f"{escape(file)}, {size / 1e6:.1f} MB (fp32: {full / 1e6:.1f} MB), input {report.input_type}"
    )
    if report.quantised:
        table.add_row("quantised", f"{report.quantised} layers; all else {report.rest}")
    for line in report.kept[:12]:
        table.add_row("kept", escape(line))
    if len(report.kept) > 12:
        table.add_row("", f"and {len(report.kept) - 12} more (see the manifest)")
    return table


def _agreement(report: PrecisionReport | RuntimeReport) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if report.map_iou is not None:
        worst = f"worst {report.worst_map_iou:.3f}; at least {report.min_iou:g}"
        table.add_row("maps", f"IoU {report.map_iou:.4f} with fp32's ({worst})")
    table.add_row(
        "responses", f"differ by {report.response_error:.2g} of the largest (at most {report.max_error:g})"
    )
    table.add_row("checked on", escape(report.checked))
    return table
