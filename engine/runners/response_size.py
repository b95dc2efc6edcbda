"""The response's size for a view's: by the arithmetic that the bundle records (bundle.py: ResponseCells), or, where
it records none, from what a runtime tells of one size for each remainder of the stride."""

from __future__ import annotations

from collections.abc import Callable

from infercam.engine.bundle import Manifest
from infercam.engine.common.errors import BackendError
from infercam.engine.device.runner import OutputShape


class ResponseSize:
    """Height and width of a view -> shape of its response.

    probe: height, width -> rows, columns of the response, by whatever the runtime offers; asked only of bundles
    without recorded cells. Raises what it raises.
    """

    def __init__(self, manifest: Manifest, probe: Callable[[int, int], tuple[int, int]]) -> None:
        self._manifest = manifest
        self._probe = probe
        self._axes = (_Axis(manifest.stride), _Axis(manifest.stride))

    def __call__(self, height: int, width: int) -> OutputShape:
        """Raises BackendError where the graph takes one size only, and this is another."""
        m, fixed = self._manifest, self._manifest.input.fixed_size
        if fixed is not None and (height, width) != fixed:
            raise BackendError(f"the graph takes {fixed[0]}x{fixed[1]} only, not {height}x{width}")
        if m.cells is not None:
            return OutputShape(len(m.classes), *m.cells.size(height, width, m.stride))
        rows, columns = self._axes
        if rows.cells(height) is None or columns.cells(width) is None:
            found = self._probe(height, width)
            rows.learn(height, found[0])
            columns.learn(width, found[1])
        return OutputShape(len(m.classes), rows.cells(height) or 0, columns.cells(width) or 0)


class _Axis:
    """Cells of the response along one axis: a side longer by one stride has one cell more, so that what is known
    of a side is known of all sides that leave the same remainder."""

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self._known: dict[int, int] = {}
        """Remainder -> cells less whole strides."""

    def cells(self, side: int) -> int | None:
        known = self._known.get(side % self.stride)
        return None if known is None else side // self.stride + known

    def learn(self, side: int, cells: int) -> None:
        self._known[side % self.stride] = cells - side // self.stride
