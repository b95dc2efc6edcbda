"""A runtime's own arithmetic: checked, recorded, taken by `auto`, and refused where it must be."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer import Typer
from typer.testing import CliRunner

from infercam.engine.backends import choose_backend, load_chosen
from infercam.engine.backends.choice import obstacle
from infercam.engine.bundle import MANIFEST, Bundle
from infercam.engine.common.errors import BackendError, BundleError, ExportError, MissingExtra
from infercam.engine.runners import openvino as runner
from infercam.engine.runners.openvino import OpenvinoNetwork
from infercam.engine.runners.ort_cpu import OrtCpuNetwork
from infercam.export.commands import register
from infercam.export.compare import Tolerance
from infercam.export.precision import runtime
from infercam.export.precision.precision import PrecisionSettings
from infercam.export.precision.runtime import TimedNetwork, add_runtime
from tests.engine import tiny

pytest.importorskip("openvino", reason="needs the extra openvino")
if obstacle("openvino", None, "bf16") is not None:
    pytest.skip("this CPU has no bf16 arithmetic", allow_module_level=True)

LOOSE = Tolerance(response_error=0.5, iou=0.6, miou_drop=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.build(tmp_path / "bundle")


@pytest.fixture
def any_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny network is all overhead."""
    monkeypatch.setattr(runtime, "LEAST_SPEED", 0.0)


def settings(tolerance: Tolerance = LOOSE) -> PrecisionSettings:
    return PrecisionSettings("bf16", tolerance=tolerance)


def test_recorded_and_taken(bundle: Bundle, any_speed: None) -> None:
    assert choose_backend(bundle).name == "cpu"
    said: list[str] = []
    images = [tiny.picture(40 + i, 56 - i, i) for i in range(20)]
    report = add_runtime(bundle, settings(), images, said.append)
    again = Bundle.load(bundle.path)
    assert again.manifest.runtimes == [report] and again.hash == bundle.hash
    assert json.loads((bundle.path / MANIFEST).read_text())["schema_version"] == 3
    assert report.checked.startswith("12 images") and said[-1] == "the check on 12 images"
    assert 0 < report.response_error < 0.5 and report.speed > 0
    assert choose_backend(again).name == choose_backend(again, "bf16").name == "openvino"
    assert choose_backend(again, "fp32").reasons["openvino"] == "`auto` takes it in bf16 and int8 only"
    backend, choice = load_chosen("auto", again, 1)
    backend.close()
    assert (backend.name, backend.precision) == ("openvino", "bf16") and str(choice).startswith(
        "openvino (not tensorrt"
    )
    second = add_runtime(again, settings(), images[:3])
    assert Bundle.load(bundle.path).manifest.runtimes == [second]


def test_taken_only_where_it_holds(bundle: Bundle, any_speed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    add_runtime(bundle, settings())  # on textures
    again = Bundle.load(bundle.path)

    def reason() -> str:
        found = choose_backend(again)
        assert found.name == "cpu"
        return found.reasons["openvino"]

    monkeypatch.setattr(runner, "version", lambda name: "2099.1")
    assert "and here is 2099.1: infercam precision" in reason()
    monkeypatch.undo()

    def refuse(precision: str) -> None:
        raise BackendError("this CPU has no bf16 arithmetic")

    monkeypatch.setattr(runner, "check_precision", refuse)
    assert "no bf16" in reason()
    monkeypatch.undo()
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    assert "infercam[openvino]" in reason()


def test_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (bundle.path / MANIFEST).read_bytes()
    with pytest.raises(ExportError, match="is not good enough and was not recorded: responses differ by"):
        add_runtime(bundle, settings(Tolerance(response_error=1e-9, iou=0, miou_drop=1)))
    monkeypatch.setattr(runtime, "LEAST_SPEED", 1e9)
    with pytest.raises(ExportError, match=r"saves nothing here: .* times as fast; not recorded"):
        add_runtime(bundle, settings())
    with pytest.raises(BundleError, match="no int8 graph"):
        add_runtime(bundle, PrecisionSettings("int8"))
    monkeypatch.setattr(runner, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"infercam\[openvino\]"):
        add_runtime(bundle, settings())
    assert (bundle.path / MANIFEST).read_bytes() == before


def test_what_is_kept_is_the_fewest_layers_that_reach_the_aim(
    bundle: Bundle, any_speed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "KEPT", (0, 1, 2, 99))
    ious = {0: 0.8, 1: 0.9, 2: 0.985, 99: 0.99}
    tried: list[int] = []

    def network(bundle: Bundle, threads: int, precision: str, kept: int) -> OpenvinoNetwork:
        tried.append(kept)
        return OpenvinoNetwork(bundle, threads, precision, kept)

    def found(*networks: object, **options: object) -> SimpleNamespace:
        return SimpleNamespace(iou=ious[tried[-1]])

    monkeypatch.setattr(runtime, "OpenvinoNetwork", network)
    monkeypatch.setattr(runtime, "compare", found)
    within = Tolerance(response_error=1, iou=0.97, miou_drop=1)
    reference = TimedNetwork(OrtCpuNetwork(bundle), bundle.manifest)
    kept = partial(runtime._fewest_kept, bundle, reference, [], watch=lambda what: None)
    assert kept(within) == 2 and tried == [0, 1, 2]
    assert kept(within.model_copy(update={"iou": 0.999})) == 99  # never reached: the best counts
    ious[2] = 0.9885
    assert kept(within.model_copy(update={"iou": 0.999})) == 2  # or what is as good


def test_more_layers_in_fp32_are_nearer(bundle: Bundle) -> None:
    x = tiny.picture(60, 80)[None].transpose(0, 3, 1, 2).astype(np.float32) / 64 - 2
    manifest = bundle.manifest
    want = OrtCpuNetwork(bundle).run([manifest.response], x)[0]

    def error(kept: int) -> float:
        network = OpenvinoNetwork(bundle, 1, "bf16", kept)
        assert ("layers in fp32" in network.describe()) == (kept > 0)
        return float(np.abs(network.run([manifest.response], x)[0] - want).max() / np.abs(want).max())

    assert error(99) < 0.2 * error(1) and error(1) < error(0)


def test_the_command(bundle: Bundle, any_speed: None) -> None:
    app = Typer()
    register(app)

    def call(*more: str) -> tuple[int, str, str]:
        command = ["precision", str(bundle.path), "--to", "bf16", "--runtime", "openvino"]
        found = CliRunner().invoke(app, [*command, *more])
        return found.exit_code, found.output, str(found.exception)

    code, output, _ = call("--min-iou", "0.5", "--max-error", "0.5")
    assert code == 0 and "added openvino bf16 to" in output and "times ONNX Runtime in fp32" in output
    code, output, _ = call("--min-iou", "0.5", "--max-error", "0.5", "--json", "-")
    assert code == 0 and json.loads(output)["bf16"]["runtime"] == "openvino"
    assert "do not go with --runtime" in call("--half-input")[2]
    assert "--runtime tvm: there is openvino" in call("--runtime", "tvm")[2]
    assert "computes in bf16, int8, not in 'fp16'" in call("--to", "fp16")[2]


def test_only_runs_of_a_size_seen_before_are_timed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowFirst:
        def run(self, outputs: list[str], x: np.ndarray) -> list[np.ndarray]:
            clock.append(clock[-1] + (100 if x.shape not in seen else 1))
            seen.add(x.shape)
            return [x]

        def describe(self) -> dict[str, object]:
            return {}

    clock, seen = [0.0], set[tuple[int, ...]]()
    monkeypatch.setattr(runtime.time, "process_time", lambda: clock[-1])
    network = TimedNetwork(SlowFirst(), bundle.manifest)
    for side in (8, 16, 8, 8, 16):
        network(np.zeros((1, 3, side, 8), np.float32))
    assert network.seconds == 3
