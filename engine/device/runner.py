"""What a network runtime must offer to run inside a device backend: device pointers in, device pointers out, on
the backend's stream. TensorRT, ONNX Runtime CUDA and (in benchmarks) PyTorch stand behind it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

from infercam.engine.device.driver import Pointer

InputType = Literal["float32", "float16"]


class OutputShape(NamedTuple):
    """Shape of the response for one input shape: classes, height, width."""

    classes: int
    height: int
    width: int


ANY_NUMBER = 1 << 16
"""Of views in a batch, or of shapes that are kept: no limit."""


class Runner(Protocol):
    """One network. Outputs are float32 whatever it computes in; its input is `input_type`.

    A runner class derives from this one, and so has what is said here where it does not say otherwise.
    """

    name: str
    """For example `tensorrt`, `ort-cuda`."""
    precision: str
    input_type: InputType

    @property
    def keeps(self) -> int:
        """How many (views, height, width) it keeps ready at a time, as far as is known now."""
        return ANY_NUMBER

    def prepare(self, batch: int, height: int, width: int) -> bool:
        """Get ready for batches of that shape (a session, a context, plans of convolutions, a captured graph),
        so that its first run takes what every later one does.

        Called by the backend's thread, within `driver.current()`; may wait for the device. `respond` does it for a
        shape that is not ready, and may drop another one for it; this may not. True: it is ready. False: there is no
        room for it, and nothing was done. Raises what `respond` raises.
        """
        return True

    def response_shape(self, height: int, width: int) -> OutputShape:
        """Of one view; raises BackendError where the network does not take that size."""
        ...

    def max_batch(self, height: int, width: int) -> int:
        """Most views of that size in one run (a plan's profile); a large number where there is no limit."""
        ...

    def respond(self, batch: int, height: int, width: int, image: Pointer, response: Pointer) -> None:
        """Enqueue one batch on the stream: N×3×h×w at `image` -> N×C×h'×w' float32 at `response`.

        Raises OutOfMemory (scheduler) where its own working memory is short: nothing was enqueued then.
        """
        ...

    def scores(self, batch: int, height: int, width: int, image: Pointer, scores: Pointer) -> None:
        """The same for the logits, N×C float32."""
        ...

    def describe(self) -> dict[str, Any]:
        """Versions, precision, plan: recorded beside results."""
        ...

    def close(self) -> None: ...
