"""The zoo's own work: its lists, one row in a process of its own, what is summed up and kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxscript")
torch = pytest.importorskip("torch")

from infercam.benchmarks.zoo import attempt as trying
from infercam.benchmarks.zoo import run
from infercam.benchmarks.zoo.families import LIBRARIES, Member, members
from infercam.benchmarks.zoo.networks import ONE_SIZE, Specimen, _saver, randomise, settle
from infercam.engine.common.errors import InputError


def test_every_network_is_listed_once():
    names = [m.key for library in LIBRARIES for m in members(library)]
    assert len(names) == len(set(names)) and 70 <= len(names) <= 100


def network(member: Member, wrong: bool = False) -> Specimen:
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, stride=8), torch.nn.BatchNorm2d(6), torch.nn.ReLU())
    module = torch.nn.Sequential(
        body, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 4)
    )
    randomise(module)
    settle(module, member.size)

    def logits(x):
        with torch.no_grad():
            return module(torch.from_numpy(x)).numpy() + (0.1 if wrong else 0)

    return Specimen(4, logits, _saver(module), module)


def stiff(save):
    """An exporter that writes no free sizes."""

    def one_size_only(file, way, size):
        if not way.endswith(ONE_SIZE):
            raise RuntimeError("not constant")
        save(file, way, size)

    return one_size_only


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("good", "free"),
        ("wrong", "wrong file"),
        ("spoiled", "wrong"),
        ("torn", "not built"),
        ("odd", "traceback"),
        ("stiff", "free"),
    ],
)
def test_a_row(monkeypatch, name, outcome):
    def build(member):
        if name == "torn":
            raise MemoryError
        found = network(member, wrong=name in ("wrong", "spoiled"))
        return replace(found, save=stiff(found.save)) if name == "stiff" else found

    monkeypatch.setattr(trying, "build", build)
    if name == "spoiled":  # the bundle is neither what the network nor what the file computes
        monkeypatch.setattr(
            trying, "_of_file", lambda file: network(Member("timm", name, 64), wrong=True).logits
        )
    if name == "odd":
        monkeypatch.setattr(trying, "export_onnx", lambda *a, **k: {}["no such key"])
    row = run.tried(Member("timm", name, 64), "traced")
    assert row["outcome"] == outcome, row
    assert row["seconds"] >= 0 and 0 < row["peak_gb"] < 10
    assert json.loads(json.dumps(row)) == row
    if name == "stiff":
        assert row["notes"][0].startswith(
            "the exporter writes no file of free sizes: RuntimeError: not constant"
        )
    if outcome == "free":
        assert row["error"] < 1e-5 and row["size"] is None and row["stride"] == 8


def test_what_was_tried_is_not_tried_again(monkeypatch, tmp_path, capsys):
    tried = []

    def fake(member, way):
        tried.append(member.name)
        good = len(tried) != 1
        more = {"error": 1e-7, "size": None, "smallest": 1, "multiple": 1} if good else {}
        return {"outcome": "free" if good else "refused", "reason": "", "seconds": 1.0, "peak_gb": 0.5} | more

    monkeypatch.setattr(run, "tried", fake)
    monkeypatch.setattr(run, "import_module", lambda name: None)
    for again in (False, False, True):
        run.main(library=["timm"], way="traced", only="mobilenet", again=again, out=tmp_path)
    names = [m.name for m in members("timm") if "mobilenet" in m.name]
    assert tried == [*names, names[0]]
    summary = json.loads((tmp_path / "zoo.json").read_text())["summary"]["traced"]
    assert summary["networks"] == len(names) and summary["share exported"] == 1.0
    with pytest.raises(InputError, match="--library"):
        run.main(library=["torchhub"], out=tmp_path)
    with pytest.raises(InputError, match="--way"):
        run.main(library=["timm"], way="hoped", out=tmp_path)
    assert np.isfinite(summary["most seconds"]) and "mobilenet" in capsys.readouterr().out
