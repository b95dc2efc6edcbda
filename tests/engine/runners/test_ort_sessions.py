"""A session a shape: which stay, what they share, and what happens where memory is short."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BundleError
from infercam.engine.method.backend import OutOfMemory
from infercam.engine.onnx_files import external_weights
from infercam.engine.runners import ort_sessions
from infercam.engine.runners.ort_sessions import Sessions, SharedGraph, leave_arena, shared_arena
from tests.engine import tiny

Shape = tuple[int, int, int]


class Device:
    """Memory that sessions take: each one `cost` bytes, made while there is room."""

    def __init__(self, total: int = 1000, cost: int = 100) -> None:
        self.free, self.cost = total, cost
        self.log: list[str] = []
        self.made = 0

    def make(self) -> str:
        if self.free < self.cost:
            raise OutOfMemory("none left")
        self.made += 1
        self.free -= self.cost
        self.log.append("make")
        return f"session {self.made}"

    def dropped(self, shape: Shape) -> None:
        self.free += self.cost
        self.log.append(f"drop {shape[0]}")

    def sessions(self, budget: int, most: int = 256) -> Sessions:
        return Sessions(
            self.make,
            budget,
            wait=lambda: self.log.append("wait"),
            free=lambda: self.free,
            dropped=self.dropped,
            most=most,
        )


def run(sessions: Sessions, n: int) -> str:
    used: list[str] = []
    sessions.run((n, 1, 1), used.append)
    return used[-1]


@given(st.lists(st.integers(1, 6), max_size=40), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_least_recently_used_goes(asked: list[int], most: int) -> None:
    device = Device(total=1 << 40)
    sessions = device.sessions(1 << 40, most)
    twin: OrderedDict[int, str] = OrderedDict()
    for n in asked:
        got = run(sessions, n)
        if n not in twin:
            while len(twin) >= most:
                twin.popitem(last=False)
            twin[n] = got
        assert got == twin[n]
        twin.move_to_end(n)
        assert len(sessions) == len(twin) and sessions.made == device.made


def test_the_budget_bounds_what_was_measured() -> None:
    device = Device(cost=100)
    sessions = device.sessions(budget=350)
    assert sessions.keeps == 256 and not sessions.full
    for n in range(1, 6):
        run(sessions, n)
        assert sessions.keeps == 3
    assert len(sessions) == 3 and sessions.full and device.free == 700
    assert (5, 1, 1) in sessions and (2, 1, 1) not in sessions


def test_one_larger_than_the_budget_is_kept_alone() -> None:
    sessions = Device(cost=500).sessions(budget=10)
    assert run(sessions, 1) == run(sessions, 1) and run(sessions, 2) == run(sessions, 2)
    assert len(sessions) == 1


def test_the_device_is_waited_for_before_memory_changes_hands() -> None:
    device = Device()
    sessions = device.sessions(budget=150)
    run(sessions, 1)
    run(sessions, 1)
    run(sessions, 2)
    assert device.log == ["wait", "make", "wait", "drop 1", "wait", "make"]


def test_where_memory_is_short_the_others_go_first() -> None:
    """In making a session, and in a run of one that is there."""
    device = Device(total=250)
    sessions = device.sessions(budget=1 << 40)
    run(sessions, 1)
    run(sessions, 2)
    assert run(sessions, 3) == "session 3" and len(sessions) == 1
    device.free = 0
    run(sessions, 3)
    with pytest.raises(OutOfMemory):
        Device(total=50).sessions(1 << 40).run((1, 1, 1), lambda session: None)

    tried: list[str] = []

    def hungry(session: str) -> None:
        tried.append(session)
        if len(sessions) > 1 or len(tried) < 2:
            raise OutOfMemory("in the run")

    device.free = 1000
    run(sessions, 4)
    sessions.run((4, 1, 1), hungry)
    assert tried == ["session 4"] * 2 and len(sessions) == 1
    with pytest.raises(OutOfMemory, match="in the run"):  # alone already: halving is the scheduler's
        tried.clear()
        sessions.run((4, 1, 1), lambda session: hungry(tried.clear() or session))


def test_a_session_whose_first_run_failed_is_used_again() -> None:
    device = Device()
    sessions = device.sessions(1 << 40)

    def fails(session: str) -> None:
        raise ValueError("a bad view")

    with pytest.raises(ValueError, match="a bad view"):
        sessions.run((1, 1, 1), fails)
    assert (1, 1, 1) not in sessions and sessions.any() == "session 1"
    assert run(sessions, 2) == "session 1" and device.made == 1


# -- what they share -------------------------------------------------------------------------------------------
def quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return options


@pytest.fixture
def wide(tmp_path: Path) -> Bundle:
    """Weights that are worth sharing."""
    return tiny.build(tmp_path / "b", stride=8)


def test_one_copy_of_the_weights_serves_all_sessions(wide: Bundle) -> None:
    """Whoever writes to it changes what every session computes."""
    providers = ["CPUExecutionProvider"]
    shared = SharedGraph(ort, wide.graph(), quiet, providers, [{}], "cpu", 0)
    names = {w.name for w in external_weights(shared.file)}
    assert names and shared.nbytes == sum(w.nbytes for w in external_weights(shared.file))
    sessions = []
    for _ in range(2):
        options = quiet()  # on a CPU the last level lays weights out anew, each session for itself
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        shared.add_to(options)
        sessions.append(ort.InferenceSession(str(shared.file), options, providers=providers))
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 52), dtype=np.float32)
    want = tiny.network(wide)(x)
    for session in sessions:
        np.testing.assert_allclose(session.run(["response"], {"image": x})[0], want, atol=1e-5)
    for name, value in shared._weights.items():
        value.update_inplace(np.zeros_like(value.numpy()))
        assert name in names
    for session in sessions:
        assert np.abs(session.run(["response"], {"image": x})[0] - want).max() > 0.1
    folder = shared.file.parent
    del sessions
    shared.close()
    assert not folder.exists()


def test_a_graph_that_cannot_be_read_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    made: list[str] = []
    plain = ort_sessions.tempfile.TemporaryDirectory

    def noted(prefix: str):
        folder = plain(prefix=prefix, dir=tmp_path)
        made.append(folder.name)
        return folder

    monkeypatch.setattr(ort_sessions.tempfile, "TemporaryDirectory", noted)
    with pytest.raises(Exception, match="rotobuf"):
        SharedGraph(ort, tmp_path / "x.onnx", quiet, ["CPUExecutionProvider"], [{}], "cpu", 0)
    assert made and not Path(made[0]).exists()


def test_external_weights_are_those_of_the_onnx_package(wide: Bundle, tmp_path: Path) -> None:
    import onnx
    from onnx import external_data_helper as external

    model = onnx.load(str(wide.graph()))
    file = tmp_path / "e.onnx"
    onnx.save_model(model, str(file), save_as_external_data=True, location="w.bin", size_threshold=100)
    plain = onnx.load(str(file), load_external_data=False)
    want = {}
    for tensor in plain.graph.initializer:
        if external.uses_external_data(tensor):
            info = external.ExternalDataInfo(tensor)
            want[tensor.name] = (tuple(tensor.dims), info.location, info.offset or 0, info.length)
    found = {w.name: (w.shape, w.location, w.offset, w.nbytes) for w in external_weights(file)}
    assert found == want and len(found) >= 3
    assert external_weights(wide.graph()) == []
    (tmp_path / "x.onnx").write_bytes(b"\x3a\xff\xff")
    with pytest.raises(BundleError, match="not an ONNX file"):
        external_weights(tmp_path / "x.onnx")


def test_the_shared_arena_is_one_streams() -> None:
    """Memory freed by one stream's run must not go to another's: a second engine has arenas of its own."""
    assert shared_arena(ort, "cpu", 0, 0x57, None) and shared_arena(ort, "cpu", 0, 0x57, None)
    assert not shared_arena(ort, "cpu", 0, 0x58, None)
    leave_arena("cpu", 0, 0x58)  # not its own
    assert not shared_arena(ort, "cpu", 0, 0x58, None)
    leave_arena("cpu", 0, 0x57)
    assert shared_arena(ort, "cpu", 0, 0x58, None)
    leave_arena("cpu", 0, 0x58)
    assert not shared_arena(object(), "cuda", 0, 1, None), "a build that has none"
