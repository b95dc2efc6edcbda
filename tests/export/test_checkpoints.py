"""Reading checkpoints: formats, wrappers, prefixes, and one clear line for everything that does not fit."""

from __future__ import annotations

import argparse

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from torch import nn

from infercam.engine.common.errors import ExportError
from infercam.export.checkpoints import fit, layers_of, read_checkpoint, split_off

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(got, want=STATE):
    assert list(got) == list(want)
    for key, value in want.items():
        assert torch.equal(got[key], value)


@pytest.mark.parametrize(
    "held",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE},
        {"model": {"state_dict": STATE}},
        {f"module.{k}": v for k, v in STATE.items()},
        {"state_dict": {f"module.{k}": v for k, v in STATE.items()}},
        {f"_orig_mod.module.{k}": v for k, v in STATE.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_prefixes_come_off(tmp_path, held, zipped):
    file = tmp_path / "weights.pth"
    torch.save(held, file, _use_new_zipfile_serialization=zipped)
    same(read_checkpoint(file))


def test_safetensors(tmp_path):
    file = tmp_path / "weights.safetensors"
    safetensors_torch.save_file({f"module.{k}": v for k, v in STATE.items()}, file)
    got = read_checkpoint(file)
    assert set(got) == set(STATE)
    assert torch.equal(got["a.weight"], STATE["a.weight"])


def test_prefix_inside_a_name_stays(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"head.module.weight": torch.ones(1)}, file)
    assert list(read_checkpoint(file)) == ["head.module.weight"]


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit(3)",))


@pytest.mark.parametrize(
    ("held", "named"),
    [
        ({"state_dict": STATE, "extra": Harmful()}, "exec"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"state_dict": STATE, "args": argparse.Namespace(lr=1)}, "argparse.Namespace"),
    ],
)
def test_a_file_with_objects_is_refused_not_run(tmp_path, held, named):
    file = tmp_path / "weights.pth"
    torch.save(held, file)
    with pytest.raises(
        ExportError, match=r"holds more than tensors.*torch\.save\(model\.state_dict\(\)"
    ) as e:
        read_checkpoint(file)
    assert named in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"PK\x03\x04 cut off", b"\x80\x02}q"])
def test_garbage_is_one_line(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ExportError, match=name) as e:
        read_checkpoint(file)
    assert "\n" not in str(e.value)


def test_truncated_checkpoint_is_one_line(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ExportError, match="not a readable PyTorch checkpoint"):
        read_checkpoint(file)


def test_missing_file(tmp_path):
    with pytest.raises(ExportError, match="no such checkpoint file"):
        read_checkpoint(tmp_path / "no.pth")


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ([torch.ones(1)], "holds a list, not a state dict"),
        ({"epoch": 3, "lr": 0.1}, r"no state dict found \(top-level keys: epoch, lr"),
        ({}, "top-level keys: none"),
    ],
)
def test_no_state_dict_inside(tmp_path, held, message):
    file = tmp_path / "weights.pth"
    torch.save(held, file)
    with pytest.raises(ExportError, match=message):
        read_checkpoint(file)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_fit_copies_as_float32_and_forgives_counters():
    wanted = network()
    state = {k: v.half() for k, v in wanted.state_dict().items() if "num_batches" not in k}
    state["gone.num_batches_tracked"] = torch.tensor(7)
    module = network()
    fit(module, state, what="toy", origin="w.pth")
    assert module[0].weight.dtype is torch.float32
    assert torch.equal(module[0].weight, wanted[0].weight.half().float())


def test_fit_names_missing_unexpected_and_misshapen():
    module = network()
    before = module[0].bias.clone()
    state = dict(network().state_dict())
    del state["1.running_var"]
    state["0.weight"] = torch.zeros(4, 1, 1, 1)
    state |= {f"extra{i}.weight": torch.zeros(1) for i in range(6)}
    with pytest.raises(ExportError) as e:
        fit(module, state, what="toy", origin="w.pth")
    text = str(e.value)
    assert text.startswith("w.pth: does not fit toy: 1 missing: 1.running_var; 6 unexpected: extra0.weight, ")
    assert "extra3.weight, and 2 more; " in text
    assert "extra4" not in text
    assert text.endswith("1 of another shape: 0.weight (file [4, 1, 1, 1], network [4, 3, 1, 1])")
    assert torch.equal(module[0].bias, before)  # nothing was copied


def test_split_off_takes_whole_layer_names_only():
    state = {"f9.weight": torch.ones(1), "f90.weight": torch.ones(1), "f9": torch.ones(1)}
    kept, ignored = split_off(state, ("f9",))
    assert list(kept) == ["f90.weight"]
    assert ignored == ["f9.weight", "f9"]


def test_layers_of():
    assert layers_of(["a.b.weight", "a.b.bias", "c.weight"]) == ["a.b", "c"]
