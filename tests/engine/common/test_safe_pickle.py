"""Other tools' pickled dictionaries: what is plain is read, everything else is refused and not run."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.safe_pickle import load_npy_dict
from tests.shared import SHARED


def npy(body: bytes, dtype: str = "|O") -> bytes:
    """A version 1.0 .npy file whose data is `body`."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (), }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def save(path: Path, content: object) -> Path:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def test_reads_what_numpy_writes(tmp_path: Path) -> None:
    content = {
        "2007_000032": np.arange(20, dtype=np.float32),
        2007000033: np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 4), np.float16),
        "names": np.array(["ab", "c"]),
        "scalar": np.float64(0.5),
        "flag": True,
        "nothing": None,
        "list": [1, (2.5, "x")],
    }
    found = load_npy_dict(save(tmp_path / "a.npy", content))
    assert found.keys() == content.keys()
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            assert found[key].dtype == value.dtype and np.array_equal(found[key], value)
        else:
            assert found[key] == value and type(found[key]) in (float, bool, list, type(None))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_reads_every_protocol(tmp_path: Path, protocol: int) -> None:
    outer = np.array({3: np.arange(4, dtype=np.float32)}, dtype=object)
    (tmp_path / "a.npy").write_bytes(npy(pickle.dumps(outer, protocol=protocol)))
    assert np.array_equal(load_npy_dict(tmp_path / "a.npy")[3], np.arange(4))


def test_reads_numpy_1_names(tmp_path: Path) -> None:
    raw = pickle.dumps(np.array({3: np.arange(4, dtype=np.float32)}, dtype=object), protocol=2)
    old = raw.replace(b"numpy._core", b"numpy.core")
    (tmp_path / "a.npy").write_bytes(npy(old))
    assert np.array_equal(load_npy_dict(tmp_path / "a.npy")[3], np.arange(4))


def test_reads_tensors_without_torch_only_when_asked(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    content = {
        "keys": torch.tensor([1, 14]),
        "cam": torch.rand(2, 3, 4),
        "half": torch.rand(5).half(),
        "view": torch.arange(12.0).reshape(3, 4).t()[1:3],
        "grad": torch.rand(3, requires_grad=True),
        "none": torch.zeros(0, 3),
    }
    file = save(tmp_path / "a.npy", content)
    with pytest.raises(StoreError, match="torch"):
        load_npy_dict(file)
    found = load_npy_dict(file, allow_torch=True)
    for key, value in content.items():
        assert isinstance(found[key], np.ndarray)
        assert np.array_equal(found[key], value.detach().numpy()), key


class _Evil:
    def __init__(self, call: object, *args: object) -> None:
        self.parts = (call, args)

    def __reduce__(self):
        return self.parts


def _numpy_record_bomb() -> bytes:
    """A dtype state that hides objects in raw bytes: NumPy's own unpickler would follow made-up pointers."""
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8K\x00K\x01tR"
    state = b"(K\x03X\x01\x00\x00\x00|N(X\x01\x00\x00\x00at}X\x01\x00\x00\x00a"
    state += b"(cnumpy\ndtype\n(X\x01\x00\x00\x00OtRK\x00tsK\x08K\x01K\x00tb"
    return b"\x80\x02" + dtype + state + b"."


MALICIOUS = {
    "system": pickle.dumps({"a": _Evil(os.system, "touch PWNED")}),
    "eval": pickle.dumps({"a": _Evil(eval, "open('PWNED', 'w')")}),
    "getattr": pickle.dumps({"a": _Evil(getattr, np.ndarray, "tofile")}),
    "numpy load": pickle.dumps({"a": _Evil(np.load, "x.npy")}),
    "numpy testing": pickle.dumps({"a": _Evil(np.testing.assert_allclose, 1, 1)}),
    "nested names": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
    "ndarray called": b"\x80\x02cnumpy\nndarray\n(K\x05tR.",
    "function changed": b"\x80\x02c_codecs\nencode\n}X\x05\x00\x00\x00_callK\x01sb.",
    "slots changed": b"\x80\x02c_codecs\nencode\nN}X\x05\x00\x00\x00_callK\x01s\x86b.",
    "record dtype": _numpy_record_bomb(),
    "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "memo bomb": b"\x80\x02}r\xff\xff\xff\x7f.",
    "extension": b"\x80\x02\x82\x01.",
    "object": pickle.dumps({"a": Path("x")}),
    "object array inside": pickle.dumps({"a": np.array([1, None], dtype=object)}),
    "set": pickle.dumps({"a": {1, 2}}),
    "tuple key": pickle.dumps({(1, 2): 1}),
}


@pytest.mark.parametrize("name", MALICIOUS)
@pytest.mark.parametrize("allow_torch", [False, True])
def test_refuses_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, allow_torch: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.npy"
    file.write_bytes(npy(MALICIOUS[name]))
    with pytest.raises(StoreError, match=r"evil\.npy: (refused|not a NumPy file)") as caught:
        load_npy_dict(file, allow_torch=allow_torch)
    assert "\n" not in str(caught.value)
    assert not Path("PWNED").exists()


def test_refuses_a_pickle_hidden_in_a_tensor_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(_Evil(os.system, "touch PWNED"), inner, _use_new_zipfile_serialization=False)
    body = pickle.dumps({"cam": _Evil(torch.storage._load_from_bytes, inner.getvalue())})
    (tmp_path / "evil.npy").write_bytes(npy(body))
    with pytest.raises(StoreError, match=r"refused.*system"):
        load_npy_dict(tmp_path / "evil.npy", allow_torch=True)
    assert not Path("PWNED").exists()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (1 << 40,), (0,)), (0, (2, 2), (3, 1)), (-1, (1,), (1,))],
)
def test_refuses_a_tensor_beyond_its_storage(tmp_path: Path, offset: int, size: tuple, stride: tuple) -> None:
    torch = pytest.importorskip("torch")
    storage = torch.zeros(4).storage()
    evil = _Evil(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())
    (tmp_path / "evil.npy").write_bytes(npy(pickle.dumps({"cam": evil})))
    with pytest.raises(StoreError, match="refused"):
        load_npy_dict(tmp_path / "evil.npy", allow_torch=True)


def test_refuses_bytes_that_do_not_fit_the_shape(tmp_path: Path) -> None:
    raw = pickle.dumps(np.array({1: np.arange(4, dtype=np.float32)}, dtype=object), protocol=2)
    (tmp_path / "a.npy").write_bytes(npy(raw.replace(b"K\x04\x85", b"K\x7f\x85")))
    with pytest.raises(StoreError, match="shape"):
        load_npy_dict(tmp_path / "a.npy")


def test_other_files_get_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros(3))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "empty.npy").write_bytes(b"")
    whole = save(tmp_path / "whole.npy", {1: np.zeros(100)}).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-50])
    save(tmp_path / "list.npy", [1, 2])
    for name in ("plain", "text", "empty", "cut", "list", "missing"):
        with pytest.raises(InputError, match=rf"{name}\.npy: ") as caught:
            load_npy_dict(tmp_path / f"{name}.npy", error=InputError)
        assert "\n" not in str(caught.value)


def test_shared_containers_do_not_multiply(tmp_path: Path) -> None:
    value: list = [0]
    for _ in range(3):
        value = [value] * 1000  # 10^9 elements if each reference were copied
    found = load_npy_dict(save(tmp_path / "a.npy", {"a": (value,)}))
    assert found["a"][0][0] is found["a"][0][999]


def test_self_reference_is_refused(tmp_path: Path) -> None:
    loop: dict = {}
    loop["a"] = loop
    (tmp_path / "a.npy").write_bytes(npy(pickle.dumps(loop)))
    with pytest.raises(StoreError, match="nested"):
        load_npy_dict(tmp_path / "a.npy")


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_reads_real_psa_labels() -> None:
    file = SHARED / "voc" / "cls_labels_psa.npy"
    found = load_npy_dict(file)
    expected = np.load(file, allow_pickle=True).item()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[k], expected[k]) for k in expected)
