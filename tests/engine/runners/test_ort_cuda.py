"""The ONNX Runtime runner: really run on host pointers, and against a stand-in for the GPU build."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, BundleError, MissingExtra
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.runners import ort_cuda
from infercam.engine.runners.host import HostNetwork
from infercam.engine.runners.ort_cuda import NHWC_SESSIONS, SESSION_BYTES, OrtRunner, provider_options
from tests.engine import tiny
from tests.host_driver import HostDriver

NO_SYNC = "disable_synchronize_execution_providers"
SIZES = [(40, 52), (41, 52), (43, 55), (64, 64), (97, 131), (400, 53), (5, 7), (42, 54)]


@pytest.fixture
def driver() -> HostDriver:
    return HostDriver()


def runner_of(bundle: Bundle, driver: HostDriver, **options) -> OrtRunner:
    return OrtRunner(bundle, driver, provider="cpu", **options)


@pytest.mark.parametrize("stride", [4, 8])
def test_responses_on_pointers_are_the_networks(tmp_path: Path, driver: HostDriver, stride: int) -> None:
    bundle = tiny.build(tmp_path / "b", stride=stride)
    runner = runner_of(bundle, driver)
    network, plain = HostNetwork(runner, driver), tiny.network(bundle)
    rng = np.random.default_rng(0)
    for height, width in SIZES:  # most shapes are never probed: they follow from the remainders
        x = rng.standard_normal((2, 3, height, width), dtype=np.float32)
        want = plain(x)
        assert runner.response_shape(height, width) == want.shape[1:]
        np.testing.assert_allclose(network(x), want, atol=1e-5)
    assert driver.held == 0, "nothing is left on the device"


def test_scores(tiny_bundle: Bundle, driver: HostDriver) -> None:
    runner = runner_of(tiny_bundle, driver)
    x = np.random.default_rng(1).standard_normal((2, 3, 40, 44), dtype=np.float32)
    with driver.current():
        image, target = driver.allocate(x.nbytes), driver.allocate(2 * 5 * 4)
        driver.copy_in(image, x.view(np.uint8).ravel())
        runner.scores(2, 40, 44, image, target)
        got = driver.view(target, 40).view(np.float32).reshape(2, 5)
    want = tiny.network(tiny_bundle)(x).mean(axis=(2, 3)) + np.array(tiny_bundle.manifest.bias, np.float32)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_fixed_graph_takes_its_size_alone(tmp_path: Path, driver: HostDriver) -> None:
    runner = runner_of(tiny.build(tmp_path / "b", fixed=(32, 48), batch=False), driver)
    assert runner.max_batch(32, 48) == 1
    assert runner.response_shape(32, 48) == (5, 8, 12)
    with pytest.raises(BackendError, match="takes 32x48 only, not 64x48"):
        runner.response_shape(64, 48)


def test_sizes_are_learnt_once_per_remainder(tiny_bundle: Bundle, driver: HostDriver, monkeypatch) -> None:
    runner = runner_of(tiny_bundle, driver)
    probed, probe = [], runner._probe
    monkeypatch.setattr(runner._size, "_probe", lambda h, w: probed.append((h, w)) or probe(h, w))
    for side in range(20, 120):
        assert runner.response_shape(side, side) == (5, -(-side // 4), -(-side // 4))
    assert probed == [(20, 20), (21, 21), (22, 22), (23, 23)]


def test_recorded_cells_are_believed_and_nothing_is_run(
    tmp_path: Path, driver: HostDriver, monkeypatch
) -> None:
    bundle = tiny.build(tmp_path / "b", cells=True)
    runner, plain = runner_of(bundle, driver), tiny.network(bundle)
    monkeypatch.setattr(runner._size, "_probe", lambda *a: pytest.fail("a probing run"))
    network = HostNetwork(runner, driver)
    for height, width in SIZES:
        x = np.random.default_rng(height).standard_normal((1, 3, height, width), dtype=np.float32)
        np.testing.assert_allclose(network(x), plain(x), atol=1e-5)


def test_cells_that_lie_are_an_error_and_no_write_outside(tmp_path: Path, driver: HostDriver) -> None:
    bundle = tiny.build(tmp_path / "b", cells=True)
    raw = json.loads((bundle.path / "manifest.json").read_text())
    raw["cells"]["rows"] = [0, 1, 2, 1]
    (bundle.path / "manifest.json").write_text(json.dumps(raw))
    network = HostNetwork(runner_of(Bundle.load(bundle.path), driver), driver)
    assert network(np.zeros((1, 3, 40, 40), np.float32)).shape == (1, 5, 10, 10)
    with pytest.raises(BackendError, match="ort-cpu failed on 1x3x42x40"):
        network(np.zeros((1, 3, 42, 40), np.float32))


@pytest.mark.parametrize("graphs", [False, True])
def test_a_session_for_every_shape(tmp_path: Path, driver: HostDriver, graphs: bool) -> None:
    """Shapes in turn, again and again: each is prepared once. graphs: over buffers that stay where they are."""
    bundle = tiny.build(tmp_path / "b", cells=True)
    runner, plain = runner_of(bundle, driver, graphs=graphs), tiny.network(bundle)
    network, rng = HostNetwork(runner, driver), np.random.default_rng(3)
    for _ in range(3):
        for n, height, width in [(1, 40, 52), (2, 40, 52), (1, 64, 41)]:
            x = rng.standard_normal((n, 3, height, width), dtype=np.float32)
            np.testing.assert_allclose(network(x), plain(x), atol=1e-5)
    assert len(runner.sessions) == runner.sessions.made == 3
    assert runner.shared is not None and runner.describe()["cuda_graphs"] == graphs
    staged = sum(s.image_bytes + s.response_bytes for s in runner._staged.values())
    assert driver.held == staged and bool(staged) == graphs
    with driver.current():
        runner.close()
    assert driver.held == 0


def test_shapes_are_prepared_beforehand_as_long_as_there_is_room(tmp_path: Path, driver: HostDriver) -> None:
    bundle = tiny.build(tmp_path / "b", cells=True)
    runner = runner_of(bundle, driver, most=2)
    with driver.current():
        assert runner.keeps == 2
        assert runner.prepare(2, 40, 52) and runner.prepare(1, 64, 64) and runner.prepare(2, 40, 52)
        assert not runner.prepare(1, 40, 52), "it would take the place of another one"
        HostNetwork(runner, driver)(np.zeros((2, 3, 40, 52), np.float32))
    assert runner.sessions.made == 2 and driver.held == 0
    HostNetwork(runner, driver)(np.zeros((3, 3, 40, 52), np.float32))  # a run takes the place that it needs
    assert len(runner.sessions) == 2
    driver.budget = 100
    with driver.current():
        runner = runner_of(bundle, driver)
        assert not runner.prepare(1, 40, 52), "no memory for a blank batch"
    assert driver.held == 0


def test_describe_and_precision(tiny_bundle: Bundle, driver: HostDriver) -> None:
    runner = runner_of(tiny_bundle, driver, precision="tf32")  # the fp32 graph
    found = runner.describe()
    assert (found["runner"], found["precision"]) == ("ort-cpu", "tf32")
    assert found["providers"] == ["CPUExecutionProvider"]
    with pytest.raises(BundleError, match="no fp16 graph"):
        runner_of(tiny_bundle, driver, precision="fp16")


# -- the GPU build, stood in for -------------------------------------------------------------------------------
class Session:
    """Records what it is asked; `got`: the providers that it ends up with."""

    got: list[str] | None = None
    input_type = "tensor(float)"
    failure: Exception | None = None
    made: list[Session]

    def __init__(self, file, sess_options, providers, provider_options) -> None:
        if self.failure is not None:
            raise self.failure
        self.file, self.asked, self.options = file, providers, provider_options
        self.bound: list[tuple] = []
        self.runs: list[dict[str, str]] = []
        self.made.append(self)

    def get_providers(self):
        return self.got if self.got is not None else [*self.asked, "CPUExecutionProvider"]

    def get_inputs(self):
        return [SimpleNamespace(type=self.input_type, name="image")]

    def run(self, outputs, feeds, options):
        (x,) = feeds.values()
        assert x.dtype == (np.float16 if self.input_type == "tensor(float16)" else np.float32)
        return [np.zeros((1, 5, -(-x.shape[2] // 4), -(-x.shape[3] // 4)), np.float32)]

    def io_binding(self):
        return SimpleNamespace(
            bind_input=lambda *a: self.bound.append(a), bind_output=lambda *a: self.bound.append(a)
        )

    def run_with_iobinding(self, binding, options):
        assert options.entries[NO_SYNC] == "1"
        self.runs.append(options.entries)
        if self.failure is not None:
            raise self.failure


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key, value) -> None:
        self.entries[key] = value


@pytest.fixture
def gpu(monkeypatch):
    """A class of sessions, and an onnxruntime module that makes them."""
    kind = type("FakeSession", (Session,), {"made": []})
    loaded = []
    module = SimpleNamespace(
        __version__="1.31.1",
        InferenceSession=kind,
        SessionOptions=SimpleNamespace,
        RunOptions=RunOptions,
        get_available_providers=lambda: [
            "TensorrtExecutionProvider",
            "CUDAExecutionProvider",
            "CPUExecutionProvider",
        ],
        preload_dlls=lambda: loaded.append(True),
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return SimpleNamespace(sessions=kind, module=module, loaded=loaded)


def test_the_stream_and_the_pointers_are_handed_over(gpu, tiny_bundle: Bundle, driver: HostDriver) -> None:
    runner = OrtRunner(tiny_bundle, driver, memory_limit=123456)
    (session,) = gpu.sessions.made
    assert session.asked == ["CUDAExecutionProvider"] and gpu.loaded == [True]
    (options,) = session.options
    assert options["user_compute_stream"] == str(driver.stream) and options["gpu_mem_limit"] == "123456"
    assert options["use_tf32"] == "0" and options["cudnn_conv_algo_search"] == "HEURISTIC"
    runner.respond(3, 40, 52, 0x1000, 0x2000)
    assert session.bound == [
        ("image", "cuda", 0, np.float32, (3, 3, 40, 52), 0x1000),
        ("response", "cuda", 0, np.float32, (3, 5, 10, 13), 0x2000),
    ]
    assert runner.name == "ort-cuda"


def test_half_precision_is_nhwc_where_many_sessions_fit(gpu, tiny_bundle: Bundle, driver: HostDriver) -> None:
    least = NHWC_SESSIONS * (tiny_bundle.graph().stat().st_size + SESSION_BYTES)
    m = tiny_bundle.manifest
    wider = m.model_copy(update={"graphs": m.graphs | {"fp16": m.graphs["fp32"]}})
    bundle = Bundle(tiny_bundle.path, wider)
    for precision, budget, nhwc in [
        ("fp16", least, True),
        ("fp16", least - 1, False),
        ("fp32", 2 * least, False),
    ]:
        runner = OrtRunner(bundle, driver, precision, sessions_budget=budget)
        assert runner.nhwc == nhwc and ("prefer_nhwc" in gpu.sessions.made[-1].options[0]) == nhwc


def test_cuda_graphs_are_asked_for_by_a_variable(
    gpu, tiny_bundle: Bundle, driver: HostDriver, monkeypatch
) -> None:
    """Scores take another output than the graph that was captured: they are run without one."""
    OrtRunner(tiny_bundle, driver)
    assert "enable_cuda_graph" not in gpu.sessions.made[-1].options[0]
    monkeypatch.setenv("INFERCAM_CUDA_GRAPHS", "1")
    runner = OrtRunner(tiny_bundle, driver)
    session = gpu.sessions.made[-1]
    assert session.options[0]["enable_cuda_graph"] == "1"
    with driver.current():
        image, target = driver.allocate(4 * 3 * 40 * 52), driver.allocate(4 * 5 * 10 * 13)
        runner.respond(1, 40, 52, image, target)
        first = [b[5] for b in session.bound]
        runner.respond(1, 40, 52, image, target)
        assert [b[5] for b in session.bound[2:]] == first and image not in first, "the same buffers, not ours"
        runner.scores(1, 40, 52, image, target)
    assert session.runs[:2] == [{NO_SYNC: "1"}] * 2 and session.runs[2]["gpu_graph_id"] == "-1"
    monkeypatch.setenv("INFERCAM_CUDA_GRAPHS", "0")
    assert not OrtRunner(tiny_bundle, driver).graphs


def test_a_half_input_is_bound_as_one(gpu, tiny_bundle: Bundle, driver: HostDriver) -> None:
    gpu.sessions.input_type = "tensor(float16)"
    runner = OrtRunner(tiny_bundle, driver)
    assert runner.input_type == "float16"
    runner.scores(1, 40, 52, 1, 2)
    assert gpu.sessions.made[0].bound[0][3] is np.float16


def test_falling_back_to_the_cpu_is_refused(gpu, tiny_bundle: Bundle, driver: HostDriver) -> None:
    gpu.sessions.got = ["CPUExecutionProvider"]
    with pytest.raises(
        BackendError, match="fell back to CPUExecutionProvider: CUDAExecutionProvider did not"
    ):
        OrtRunner(tiny_bundle, driver)
    gpu.sessions.got = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(BackendError, match="TensorrtExecutionProvider did not start"):
        OrtRunner(tiny_bundle, driver, provider="tensorrt")


@pytest.mark.parametrize(
    "text",
    [
        "BFCArena::AllocateRawInternal Available memory of 1 is smaller than requested bytes of 2",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUDNN_STATUS_ALLOC_FAILED",
        "Failed to allocate memory for requested buffer of size 3",
    ],
)
def test_out_of_memory_is_the_schedulers(gpu, tiny_bundle: Bundle, driver: HostDriver, text: str) -> None:
    runner = OrtRunner(tiny_bundle, driver)
    gpu.sessions.made[0].failure = RuntimeError(f"[ONNXRuntimeError] : 6 :\n{text}")
    with pytest.raises(OutOfMemory) as caught:
        runner.respond(1, 40, 52, 1, 2)
    assert "\n" not in str(caught.value)


def test_other_failures_are_one_line(gpu, tiny_bundle: Bundle, driver: HostDriver) -> None:
    runner = OrtRunner(tiny_bundle, driver)
    gpu.sessions.made[0].failure = RuntimeError("bad\nthings")
    with pytest.raises(BackendError, match="ort-cuda failed on 1x3x40x52: bad things") as caught:
        runner.respond(1, 40, 52, 1, 2)
    assert not isinstance(caught.value, OutOfMemory)
    gpu.sessions.failure = RuntimeError("no such operator")
    with pytest.raises(BackendError, match=r"response\.onnx: ort-cuda cannot load it: no such operator"):
        OrtRunner(tiny_bundle, driver)


def test_a_cpu_build_says_what_to_uninstall(
    gpu, tiny_bundle: Bundle, driver: HostDriver, monkeypatch
) -> None:
    gpu.module.get_available_providers = lambda: ["CPUExecutionProvider"]
    monkeypatch.setattr(ort_cuda, "version", lambda name: "1.31")
    with pytest.raises(BackendError, match="needs onnxruntime-gpu: pip uninstall onnxruntime"):
        OrtRunner(tiny_bundle, driver)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"infercam\[gpu\]"):
        OrtRunner(tiny_bundle, driver)


def test_options_of_the_tensorrt_provider() -> None:
    tensorrt, cuda = provider_options("tensorrt", 1, 77, "fp16", None)
    assert tensorrt == {"device_id": "1", "user_compute_stream": "77", "trt_fp16_enable": "1"}
    assert cuda["use_tf32"] == "1" and "gpu_mem_limit" not in cuda
    assert all(isinstance(v, str) for v in {**tensorrt, **cuda}.values())


def test_a_half_graph_really_runs(tmp_path: Path, driver: HostDriver) -> None:
    """float16 at the input and inside, float32 out, over host pointers."""
    from infercam.engine.bundle import Manifest, file_entry
    from infercam.export.precision.half import FP16, to_half

    bundle = tiny.build(tmp_path / "b")
    model = to_half(onnx.load(str(bundle.graph())), FP16, half_input=True).model
    onnx.save(model, str(bundle.path / "response.fp16.onnx"))
    m = bundle.manifest
    files = m.files | {"response.fp16.onnx": file_entry(bundle.path / "response.fp16.onnx")}
    wider = Manifest(
        **{**m.model_dump(), "graphs": m.graphs | {"fp16": "response.fp16.onnx"}, "files": files}
    )
    (bundle.path / "manifest.json").write_text(wider.model_dump_json())
    runner = runner_of(Bundle.load(bundle.path), driver, precision="fp16")
    assert runner.input_type == "float16"
    x = np.random.default_rng(2).standard_normal((1, 3, 40, 52), dtype=np.float32)
    want = tiny.network(bundle)(x)
    got = HostNetwork(runner, driver)(x)
    assert got.dtype == np.float32 and 0 < np.abs(got - want).max() < 5e-3 * np.abs(want).max()
