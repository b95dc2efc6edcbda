"""What plans cost to build: measured for real on the embedded bundle."""

from __future__ import annotations

import json

import pytest

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed, so nothing is built: pip install 'infercam[rtx]'"
)

from infercam.benchmarks.gpu.builds import main, measure, random_bundle
from infercam.engine.bundle import Bundle, sha256_file
from infercam.engine.common.errors import InputError
from infercam.engine.demo.ablation import BUNDLE
from tests.engine import tiny


def test_every_graph_is_a_row_with_both_costs(tmp_path):
    main([BUNDLE], None, 1, "sm86", tmp_path)
    found = json.loads((tmp_path / "builds.json").read_text())
    assert found["targets"] == "sm86" and found["tensorrt_rtx"].startswith("1.")
    (row,) = found["builds"]
    assert row["precision"] == "fp32" and len(row["profiles"]) == 1
    rtx, ort = row["tensorrt_rtx"], row["onnxruntime_cpu"]
    assert rtx["plan_mb"] > 0.3 and rtx["build_cpu_s"] > 0 and rtx["peak_mb"] > rtx["peak_mb_before"]
    assert ort["start_cpu_s"] >= 0


def test_a_graph_that_is_refused_is_a_row_too(tmp_path):
    bundle = tiny.build(tmp_path / "b")
    bundle.graph().write_bytes(b"no graph")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["files"]["response.onnx"] = {"sha256": sha256_file(bundle.graph()), "size": 8}
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    (row,) = measure(Bundle.load(bundle.path), 1, None)
    assert "cannot take this graph" in row["tensorrt_rtx"]["refused"]
    assert row["onnxruntime_cpu"]["refused"]


def test_nothing_to_build_is_one_line(tmp_path):
    with pytest.raises(InputError, match="give bundles, or --arch of: mobilenetv2"):
        main(None, ["vgg"], 1, None, tmp_path)


@pytest.mark.slow
def test_random_weights(tmp_path):
    bundle = random_bundle("mobilenetv2", tmp_path / "b")
    rows = list(measure(bundle, 1, "sm86"))
    assert [r["precision"] for r in rows] == ["fp32", "fp16"]
    assert rows[1]["tensorrt_rtx"]["plan_mb"] < rows[0]["tensorrt_rtx"]["plan_mb"]
