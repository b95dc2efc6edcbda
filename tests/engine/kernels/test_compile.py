"""Building the kernels: with the compilers that are here, and the cache with one that only pretends."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from infercam.engine import kernels
from infercam.engine.common.cache import cache_folder
from infercam.engine.device import compile as build
from infercam.engine.device.driver import DeviceError

STRICT = ("-Werror", "all-warnings", "-Xptxas", "-warn-spills,-warn-lmem-usage")
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


class FakeCompiler:
    """`compile` gives a text that names what was asked for."""

    name = "fake"

    def __init__(
        self, version: str = "1", known: tuple[int, ...] = (75, 80, 90), fails: bool = False
    ) -> None:
        self.version = version
        self.known = known
        self.fails = fails
        self.calls = 0

    def architectures(self) -> list[int]:
        return list(self.known)

    def compile(self, architecture: int, ptx: bool) -> bytes:
        self.calls += 1
        if self.fails:
            raise DeviceError("fake cannot")
        return f"{'ptx' if ptx else 'sm'} {architecture}".encode() * 1000


def text(data: bytes) -> str:
    return data[: len(data) // 1000].decode()


# -- cache -------------------------------------------------------------------------------------------------
def test_built_once_and_kept(tmp_path: Path) -> None:
    fake = FakeCompiler()
    assert text(build.cubin((9, 0), tmp_path, [fake])) == "sm 90"
    assert text(build.cubin((9, 0), tmp_path, [FakeCompiler()])) == "sm 90"
    assert text(build.cubin((9, 0), tmp_path, [fake])) == "sm 90" and fake.calls == 1
    assert [p.suffix for p in tmp_path.iterdir()] == [".cubin"]


def test_another_source_architecture_or_compiler_is_another_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.cubin((9, 0), tmp_path, [FakeCompiler()])
    build.cubin((8, 0), tmp_path, [FakeCompiler()])
    build.cubin((9, 0), tmp_path, [FakeCompiler(version="2")])
    assert len(list(tmp_path.iterdir())) == 3
    original = kernels.source
    monkeypatch.setattr(kernels, "source", lambda name: original(name) + "\n// changed")
    fake = FakeCompiler()
    build.cubin((9, 0), tmp_path, [fake])
    assert fake.calls == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "folder"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    whole = build.cubin((9, 0), tmp_path, [FakeCompiler()])
    (entry,) = tmp_path.iterdir()
    data = bytearray(entry.read_bytes())
    if damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        data[100] ^= 1
        entry.write_bytes({"empty": b"", "cut": data[:50], "flipped": data}[damage])
    fake = FakeCompiler()
    assert build.cubin((9, 0), tmp_path, [fake]) == whole and fake.calls == 1
    build.cubin((9, 0), tmp_path, [fake])
    assert fake.calls == (2 if damage == "folder" else 1), "repaired, where it can be"


def test_a_cache_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert text(build.cubin((8, 0), blocked / "kernels", [FakeCompiler()])) == "sm 80"


def _build(folder: str) -> bytes:
    return build.cubin((9, 0), Path(folder), [FakeCompiler()])


def test_several_processes_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(_build, [str(tmp_path)] * 9))) == 1
    assert len(list(tmp_path.iterdir())) == 1, "no temporary file is left"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("kernels") == tmp_path / "infercam" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert cache_folder("kernels") == Path.home() / ".cache" / "infercam" / "kernels"


# -- which compiler, which architecture --------------------------------------------------------------------
@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), "sm 75"), ((8, 6), "ptx 80"), ((12, 0), "ptx 90"), ((9, 0), "sm 90")],
)
def test_a_gpu_that_the_compiler_does_not_know_gets_ptx(
    tmp_path: Path, capability: tuple[int, int], expected: str
) -> None:
    assert text(build.cubin(capability, tmp_path, [FakeCompiler()])) == expected


def test_too_old_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"6\.1 is too old for fake 1, which begins at 7\.5"):
        build.cubin((6, 1), tmp_path, [FakeCompiler()])


def test_the_next_compiler_is_tried(tmp_path: Path) -> None:
    broken, good = FakeCompiler(fails=True), FakeCompiler(version="2")
    assert text(build.cubin((9, 0), tmp_path, [broken, good])) == "sm 90" and broken.calls == 1
    with pytest.raises(DeviceError, match="fake cannot"):
        build.cubin((8, 0), tmp_path, [broken])


def test_no_compiler(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="pip install nvidia-cuda-nvrtc") as caught:
        build.cubin((9, 0), tmp_path, [])
    assert "\n" not in str(caught.value)


def test_an_nvcc_that_does_not_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in (("cuda", "exit 1"), ("path", "echo release, V12.4.131")):
        script = tmp_path / name / "bin" / "nvcc"
        script.parent.mkdir(parents=True)
        script.write_text(f"#!/bin/sh\n{code}\n")
        script.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path' / 'bin'}:{os.environ['PATH']}")
    found = build.find_nvcc()
    assert found is not None and found.version == "12.4.131"


# -- the compilers that are here ---------------------------------------------------------------------------
@pytest.fixture(scope="module")
def nvcc() -> build.Nvcc:
    if (found := build.find_nvcc()) is None:
        pytest.skip("needs nvcc (CUDA toolkit), which is not here")
    return found


@pytest.fixture(scope="module")
def nvrtc() -> build.Nvrtc:
    if (found := build.find_nvrtc()) is None:
        pytest.skip("needs NVRTC (pip install nvidia-cuda-nvrtc), which is not here")
    return found


def all_kernels_are_in(module: bytes) -> bool:
    return all(f".text.{name}".encode() in module for name in kernels.entry_points())


def test_nvcc_without_a_warning_or_a_spilt_register(nvcc: build.Nvcc) -> None:
    module = nvcc.compile(90, False, *STRICT)
    assert module.startswith(b"\x7fELF") and all_kernels_are_in(module)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_for_every_architecture_without_a_warning(nvcc: build.Nvcc, architecture: int) -> None:
    if architecture not in nvcc.architectures():
        pytest.skip(f"nvcc {nvcc.version} does not know compute capability {architecture}")
    assert all_kernels_are_in(nvcc.compile(architecture, False, *STRICT))


def test_nvrtc(nvrtc: build.Nvrtc) -> None:
    module = nvrtc.compile(nvrtc.architectures()[0], False)
    assert module.startswith(b"\x7fELF") and all_kernels_are_in(module)


def test_nvrtc_makes_ptx(nvrtc: build.Nvrtc) -> None:
    module = nvrtc.compile(80, True).decode()
    assert all(f".entry {name}" in module for name in kernels.entry_points())


@pytest.mark.parametrize("which", ["nvcc", "nvrtc"])
def test_an_error_is_one_line(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = request.getfixturevalue(which)
    monkeypatch.setattr(build, "_unit", lambda: "int nonsense(\n")
    with pytest.raises(DeviceError, match=r"cannot compile the kernels: .*error") as caught:
        compiler.compile(90, False)
    assert "\n" not in str(caught.value)
