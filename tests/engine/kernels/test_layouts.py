"""NumPy's structs and constants against what the C++ compiler makes of kernels/layouts.cuh."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest

from infercam.engine import kernels
from infercam.engine.device import layouts, ops
from tests.cuda_emulator import build


@pytest.fixture(scope="module")
def compiled() -> ctypes.CDLL:
    """A function per struct that gives its size and its fields' offsets."""
    if build.compiler() is None:
        pytest.skip("needs a C++ compiler (g++ or CXX)")
    code = ['#include <cstddef>\n#include "layouts.cuh"']
    for name, dtype in layouts.STRUCTS.items():
        values = [f"sizeof({name})", *(f"offsetof({name}, {field})" for field in dtype.names)]
        code.append(f'extern "C" void layout_{name}(std::size_t* out) {{')
        code += [f"  out[{i}] = {value};" for i, value in enumerate(values)] + ["}"]
    return build.load(build.library([], extra="\n".join(code)))


@pytest.mark.parametrize("name", layouts.STRUCTS)
def test_offsets(compiled: ctypes.CDLL, name: str) -> None:
    dtype = layouts.STRUCTS[name]
    out = (ctypes.c_size_t * 64)()
    getattr(compiled, f"layout_{name}")(out)
    expected = [dtype.itemsize, *(dtype.fields[field][1] for field in dtype.names)]
    assert list(out)[: len(expected)] == expected


def test_every_struct_is_there() -> None:
    text = re.sub(r"//.*", "", kernels.source("layouts.cuh"))
    assert set(re.findall(r"^struct (\w+) \{", text, re.MULTILINE)) == set(layouts.STRUCTS)
    for name, dtype in layouts.STRUCTS.items():
        body = re.search(rf"^struct {name} {{(.*?)^}};", text, re.MULTILINE | re.DOTALL)
        assert body and tuple(re.findall(r"(\w+)(?:\[\w+\])*;", body[1])) == dtype.names


def constant(name: str) -> str:
    text = "".join(kernels.source(n) for n in (*kernels.HEADERS, *kernels.SOURCES))
    (value,) = re.findall(rf"\b{name} = ([^;,}}]+)", text)
    return value.strip()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("THREADS", layouts.THREADS),
        ("PLANES_AT", layouts.PLANES_AT),
        ("RANK_BINS", layouts.RANK_BINS),
        ("ERASE_VALUES", ops.ERASE_VALUES),
        ("ERASE_ROUNDS", ops.ERASE_ROUNDS),
        ("WORD_ROUNDS", ops.WORD_ROUNDS),
        ("PEAK_ROUNDS", ops.PEAK_ROUNDS),
        ("CENTRE_THREADS", ops.CENTRE_THREADS),
        ("UNITE_COLUMNS", ops.UNITE_CELL[1]),
        *((f"MODE_{name.upper()}", value) for name, value in layouts.MODES.items()),
        *((f"JOIN_{name.upper()}", value) for name, value in layouts.JOINS.items()),
    ],
)
def test_constants(name: str, value: int) -> None:
    assert int(constant(name)) == value


@pytest.mark.parametrize(
    ("cell", "rows", "columns", "each"),
    [
        (ops.UPSAMPLE_CELL, "UPSAMPLE_ROWS", ops.UPSAMPLE_CELL[1], "COLUMNS_EACH"),
        (ops.UNITE_CELL, "UNITE_ROWS", int(constant("UNITE_COLUMNS")), None),
        (ops.FIRST_CELL, "FIRST_ROWS", ops.FIRST_CELL[1], None),
        (ops.SECOND_CELL, "SECOND_ROWS", ops.SECOND_CELL[1], "SIDE_BY_SIDE"),
    ],
)
def test_what_a_block_covers(cell: tuple[int, int], rows: str, columns: int, each: str | None) -> None:
    """Threads across, the columns of each; what is left of them down, the rows of each."""
    across = columns // (int(constant(each)) if each else 1)
    assert (layouts.THREADS // across * int(constant(rows)), columns) == cell


def test_ranks_cover_all_bits_of_a_positive_float() -> None:
    shifts, bits = zip(*ops.RANK_DIGITS, strict=True)
    assert sum(bits) == 31 and shifts == (20, 10, 0)
    assert all(layouts.THREADS <= 1 << b <= layouts.RANK_BINS for b in bits)


def test_every_kernel_is_found_and_launched() -> None:
    """entry_points() reads the sources as the compilers do; ops.py knows each by name."""
    text = "".join(kernels.source(n) for n in kernels.SOURCES)
    assert len(kernels.entry_points()) == text.count('extern "C" __global__')
    code = (kernels.FOLDER.parent / "device" / "ops.py").read_text()
    assert [name for name in kernels.entry_points() if f'"{name}"' not in code] == []


def test_epsilon() -> None:
    assert np.float32(constant("EPSILON").rstrip("f")) == np.float32(1e-5)
