"""The whole method as a model of Triton's Python backend: an encoded picture in, refined response maps out.

`infercam package triton` copies this file into the repository as `model.py`, beside the bundle that it serves.
It needs infercam in the server's Python, and nothing of its `export` room. That Python is 3.11 or later from Triton
24.12 on; earlier ones take an environment of one's own (EXECUTION_ENV_PATH), with NumPy 1: their backend reads
NumPy 2's arrays wrongly (it was built with a pybind11 before 2.12).

How requests come to share batches. The method loops (erase, infer again), and the pictures of two requests are
hardly ever of one size, so Triton's own batching cannot serve it: `max_batch_size` is 0, and `execute` is given
the requests one after the other. It hands each to the engine's scheduler and returns at once, without a response;
the response goes out later from another thread, through the request's response sender. So Triton calls `execute`
again while earlier requests are under way, and the scheduler batches whatever is in flight, of any sizes, recipes
and modes. That a model in default mode (one response a request) may answer after `execute` has returned is
documented since Triton 24.06. Decoupled mode would allow it too, since long before, but with it Triton refuses
plain HTTP and gRPC inference: clients would have to speak the streaming protocol. Blocking in `execute` until all
is done, as most models do, would have one request at a time in the engine.

`execute` must never raise: Triton would close the response senders of requests that are still under way.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from infercam.engine.api import Engine, Result
from infercam.engine.common.errors import BackendError, InputError
from infercam.engine.data.images import decode_image
from infercam.engine.live import LiveEngine
from infercam.engine.method.recipe import Mode, checked_mode, recipe

OUTPUTS = ("maps", "classes", "scores")
PARAMETERS = ("recipe", "mode", "score_threshold")
_WARM_SIDE = 320


class Busy(Exception):
    """As many requests are in flight as may be."""


@dataclass(eq=False)
class MapsJob:
    """One request, all that is needed of it copied out: Triton frees its tensors when `execute` returns."""

    id: str
    sender: Any
    image: bytes
    classes: list[str] | None
    """None: those that the classifier predicts."""
    recipe: str
    mode: Mode
    score_threshold: float
    wanted: frozenset[str]
    """Names of the outputs that the client asked for."""
    pixels: NDArray[np.uint8] | None = None
    scores: NDArray[np.float32] | None = None


class TritonPythonModel:
    """What Triton loads; one object, and one scheduler, for each instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle, start the engine and warm it up; raises where it cannot run here."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self._settings = {key: value["string_value"] for key, value in parameters.items()}
        self._most = int(self._settings["queue"])
        self._max_pixels = int(self._settings["max_pixels"])
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        self._engine = _load(bundle, self._settings["device"], self._settings.get("precision"))
        self._live = LiveEngine(self._engine)
        self._changed = threading.Condition()
        self._open = 0
        # Decoding and sending: neither Triton's thread nor the engine's own waits for them.
        self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="infercam-io")
        self._warm_up()
        pb_utils.Logger.log_info(f"{args['model_name']}: {bundle} on backend {self._engine.choice}")

    def execute(self, requests: list[Any]) -> None:
        """Take the requests in. Each is answered through its sender, later and in any order."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                job = self._read(request, sender)
                self._admit()
            except Exception as e:
                _refuse(sender, e)
                continue
            self._go_on(job, self._begin)

    def finalize(self) -> None:
        """Answer what is under way, then close the engine."""
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0)
        self._live.close()
        self._workers.shutdown()
        self._engine.close()

    # -- a request's way: read, begin (decode, predict), infer, answer -------------------------------------------
    def _read(self, request: Any, sender: Any) -> MapsJob:
        given = json.loads(request.parameters() or "{}")
        values = {name: given.get(name, self._settings.get(name)) for name in PARAMETERS}
        mode = checked_mode(values["mode"] or "both")
        recipe(str(values["recipe"]))
        classes = _strings(request, "classes")
        images = _strings(request, "image")
        if images is None or len(images) != 1:
            raise InputError("'image' is one encoded picture (JPEG, PNG, …)")
        return MapsJob(
            id=request.request_id() or "image",
            sender=sender,
            image=images[0],
            classes=None if classes is None else [_decoded(name) for name in classes],
            recipe=str(values["recipe"]),
            mode=mode,
            score_threshold=_threshold(values["score_threshold"]),
            wanted=frozenset(request.requested_output_names() or OUTPUTS),
        )

    def _admit(self) -> None:
        with self._changed:
            if self._open >= self._most:
                raise Busy(f"{self._most} requests are in flight; try again later")
            self._open += 1

    def _begin(self, job: MapsJob) -> None:
        """Decode; then the scores where they are needed, then the maps.

        Whether the client still waits is asked here only: a sender that has answered must not be asked again.
        """
        if job.sender.is_cancelled():
            raise CancelledError
        job.pixels = decode_image(job.image, job.id, self._max_pixels)
        job.image = b""
        if job.classes is None or "scores" in job.wanted:
            future = self._live.scores(job.pixels, recipe(job.recipe).ladder)
            future.add_done_callback(lambda done: self._go_on(job, self._scored, done))
        else:
            self._infer(job, job.classes)

    def _scored(self, job: MapsJob, done: Future[NDArray[np.float32]]) -> None:
        job.scores = done.result()
        self._infer(job, self._predicted(job) if job.classes is None else job.classes)

    def _predicted(self, job: MapsJob) -> list[int]:
        assert job.scores is not None
        probability = self._engine.probabilities(job.scores)
        return [int(i) for i in np.flatnonzero(probability > job.score_threshold)]

    def _infer(self, job: MapsJob, classes: Iterable[str | int]) -> None:
        assert job.pixels is not None
        labels = [self._label(c) for c in classes]
        future = self._live.submit(job.id, job.pixels, labels, job.recipe, job.mode)
        future.add_done_callback(lambda done: self._go_on(job, self._answer, done))

    def _label(self, text: str | int) -> str | int:
        """A class's name, or its index in digits where no class has that name."""
        known = self._engine.manifest.classes
        if isinstance(text, str) and text not in known and text.isascii() and text.isdigit():
            return int(text)
        return text

    def _answer(self, job: MapsJob, done: Future[Result]) -> None:
        result = done.result()
        tensors = {
            "maps": result.maps,
            "classes": np.array(result.classes, np.int32),
            "scores": job.scores,
        }
        out = [pb_utils.Tensor(k, v) for k, v in tensors.items() if k in job.wanted and v is not None]
        self._respond(job, pb_utils.InferenceResponse(output_tensors=out))

    # -- whatever happens, a request that was let in is answered once ---------------------------------------------
    def _go_on(self, job: MapsJob, step: Any, *about: Any) -> None:
        """The next step on a worker; what it raises is this request's answer and touches no other."""

        def run() -> None:
            try:
                step(job, *about)
            except Exception as e:
                self._respond(job, _error(e))

        self._workers.submit(run)

    def _respond(self, job: MapsJob, response: Any) -> None:
        try:
            _send(job.sender, response)
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def _warm_up(self) -> None:
        """One blank picture through the whole method: memory is allocated and kernels are compiled before the
        first request. Not a `model_warmup`, whose picture would have to be a file in Triton's own serialisation."""
        blank = np.zeros((_WARM_SIDE, _WARM_SIDE, 3), np.uint8)
        self._live.submit("warm-up", blank, [0], self._settings["recipe"]).result()


def _load(bundle: Path, device: str, precision: str | None) -> Engine:
    engine = Engine.load(bundle, "cpu" if device == "cpu" else "auto", precision=precision)
    if device == "gpu" and engine.choice.name == "cpu":
        engine.close()
        raise BackendError(f"packaged with --gpu, and nothing but the CPU works here: {engine.choice}")
    return engine


def _strings(request: Any, name: str) -> list[bytes] | None:
    """A TYPE_STRING input's values, copied; None where the request has no such input."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else [bytes(value) for value in tensor.as_numpy().ravel()]


def _decoded(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise InputError(f"the class name {name!r} is not UTF-8") from None


def _threshold(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:
        raise InputError(f"score_threshold is a probability, 0 to 1, not {value!r}")
    return number


def _refuse(sender: Any, error: BaseException) -> None:
    _send(sender, _error(error))


def _send(sender: Any, response: Any) -> None:
    """The one response of a request; a client that is gone is nobody's error."""
    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as e:
        pb_utils.Logger.log_warn(f"a response could not be sent: {e}")


def _error(error: BaseException) -> Any:
    """One line with Triton's code: what the client did wrong, what it may try again, what is ours."""
    codes: Mapping[type[BaseException], int] = {
        InputError: pb_utils.TritonError.INVALID_ARG,
        Busy: pb_utils.TritonError.UNAVAILABLE,
        CancelledError: pb_utils.TritonError.CANCELLED,
    }
    code = next((c for kind, c in codes.items() if isinstance(error, kind)), pb_utils.TritonError.INTERNAL)
    text = str(error) or type(error).__name__
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
