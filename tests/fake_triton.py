"""A stand-in for Triton's Python backend: `triton_python_backend_utils` and the server's side of it.

Written from the interface that python_backend documents, for a model in default mode, with the rules that a real
server enforces: tensors of a request die when `execute` returns; one response a request, then its sender is closed;
an `execute` that raises closes the senders of the requests that it was given. `Server` loads a model's folder as
Triton does, from its config.pbtxt, and calls `execute` from one thread, as for one instance of a model that does not
batch (max_batch_size 0): the next request comes when `execute` has returned.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

_NUMPY = {"TYPE_FP32": np.float32, "TYPE_INT32": np.int32, "TYPE_STRING": np.object_}


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = 1) -> None:
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        assert name
        assert isinstance(array, np.ndarray)
        self._name, self._array, self._alive = name, np.ascontiguousarray(array).reshape(array.shape), True

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        assert self._alive, "the request's tensors are freed when execute returns"
        return self._array

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        return True


class InferenceResponse:
    def __init__(
        self,
        output_tensors: list[Tensor] | None = None,
        error: TritonError | None = None,
        parameters: Any = None,
    ) -> None:
        assert all(isinstance(t, Tensor) for t in output_tensors or [])
        assert error is None or isinstance(error, TritonError)
        self._tensors, self._error = list(output_tensors or []), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Refused(Exception):
    """An error response; `code` is TritonError's."""

    def __init__(self, error: TritonError) -> None:
        super().__init__(error.message())
        self.code = error.code()


class InferenceResponseSender:
    def __init__(self, request: InferenceRequest) -> None:
        self._request, self._lock = request, threading.Lock()
        self._sent, self._closed = 0, False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        final = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        assert response is not None or flags != 0, "nothing to send"
        with self._lock:
            if response is not None and self._sent:
                raise RuntimeError("Non-decoupled model cannot send more than one response.")
            if response is None and final and not self._sent:
                raise RuntimeError(
                    "Non-decoupled model cannot send complete final before sending a response."
                )
            if self._closed:
                raise RuntimeError("Response sender has been closed.")
            self._sent += 1
            self._closed = final
        if response is not None:
            self._request.answered(response)

    def close(self) -> None:
        with self._lock:
            self._closed = True

    def is_cancelled(self) -> bool:
        return self._request.cancelled.is_set()


class InferenceRequest:
    def __init__(
        self, inputs: list[Tensor], outputs: list[str], parameters: Mapping[str, Any], request_id: str
    ) -> None:
        self._inputs, self._outputs, self._id = inputs, outputs, request_id
        self._parameters = json.dumps(parameters) if parameters else ""
        self._sender = InferenceResponseSender(self)
        self.cancelled = threading.Event()
        self.future: Future[dict[str, np.ndarray]] = Future()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def parameters(self) -> str:
        return self._parameters

    def requested_output_names(self) -> list[str]:
        return self._outputs

    def get_response_sender(self) -> InferenceResponseSender:
        return self._sender

    def is_cancelled(self) -> bool:
        return self.cancelled.is_set()

    # -- the server's side ---------------------------------------------------------------------------------
    def answered(self, response: InferenceResponse) -> None:
        error = response.error()
        if error is not None:
            self.future.set_exception(Refused(error))
        else:
            wanted = [t for t in response.output_tensors() if t.name() in self._outputs]
            self.future.set_result({t.name(): t.as_numpy() for t in wanted})

    def free(self) -> None:
        for tensor in self._inputs:
            tensor._alive = False
            if tensor._array.dtype != np.object_:
                tensor._array.fill(0)


class Logger:
    lines: ClassVar[list[str]] = []

    @classmethod
    def log_info(cls, message: str) -> None:
        cls.lines.append(message)

    log_warn = log_error = log_info


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((t for t in request.inputs() if t.name() == name), None)


def get_output_tensor_by_name(response: InferenceResponse, name: str) -> Tensor | None:
    return next((t for t in response.output_tensors() if t.name() == name), None)


def get_input_config_by_name(config: Mapping[str, Any], name: str) -> Any:
    return next((i for i in config.get("input", []) if i["name"] == name), None)


def get_output_config_by_name(config: Mapping[str, Any], name: str) -> Any:
    return next((o for o in config.get("output", []) if o["name"] == name), None)


def triton_string_to_numpy(name: str) -> Any:
    return _NUMPY[name]


class Server:
    """One instance of a model with the Python backend. Use as a context manager."""

    def __init__(self, folder: Path, version: str = "1", kind: str = "MODEL") -> None:
        parsed = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        assert parsed.backend == "python"
        assert parsed.name == folder.name
        assert parsed.max_batch_size == 0
        self.config = json_format.MessageToDict(parsed, preserving_proto_field_name=True)
        self.model = _import(folder / version / "model.py", f"{version}.model").TritonPythonModel()
        self.model.initialize(
            {
                "model_config": json.dumps(self.config),
                "model_instance_kind": kind,
                "model_instance_device_id": "0",
                "model_instance_name": f"{folder.name}_0",
                "model_repository": str(folder),
                "model_version": version,
                "model_name": folder.name,
            }
        )
        self.returned: queue.SimpleQueue[InferenceRequest] = queue.SimpleQueue()
        """Requests that `execute` has returned from."""
        self._queue: queue.SimpleQueue[InferenceRequest | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def ask(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: list[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        request_id: str = "",
    ) -> InferenceRequest:
        """Queue a request; its `future` gives the outputs, or raises Refused."""
        for name, value in inputs.items():
            spec = get_input_config_by_name(self.config, name)
            _check(name, value, spec)
        names = outputs or [o["name"] for o in self.config["output"]]
        tensors = [Tensor(k, np.array(v)) for k, v in inputs.items()]
        request = InferenceRequest(tensors, names, parameters or {}, request_id)
        self._queue.put(request)
        return request

    def infer(self, *args: Any, **more: Any) -> dict[str, np.ndarray]:
        """As `ask`, and wait for the outputs, which must be as the configuration says."""
        out = self.ask(*args, **more).future.result(timeout=60)
        for name, value in out.items():
            _check(name, value, get_output_config_by_name(self.config, name))
        return out

    def _serve(self) -> None:
        while (request := self._queue.get()) is not None:
            try:
                answer = self.model.execute([request])
                assert answer is None or len(answer) == 1
                if answer is not None:
                    request.get_response_sender().send(answer[0], TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            except Exception as e:
                request.get_response_sender().close()
                request.future.set_exception(Refused(TritonError(f"Failed to process the request(s): {e}")))
            request.free()
            self.returned.put(request)

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self.model.finalize()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(name: str, value: np.ndarray, spec: Any) -> None:
    assert spec is not None, f"{name} is not in the configuration"
    assert value.dtype == triton_string_to_numpy(spec["data_type"]), (name, value.dtype)
    dims = [int(d) for d in spec["dims"]]
    assert len(dims) == value.ndim, (name, value.shape)
    assert all(d in (-1, side) for d, side in zip(dims, value.shape, strict=True)), (name, value.shape, dims)


def _import(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
