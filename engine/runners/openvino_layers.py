"""Which layers of a network OpenVINO leaves in fp32 where it computes in bf16.

OpenVINO decides that by a mark on each operation, which has no name in Python, but one in the XML that it writes and
reads. Marking single operations is unsafe (2026.4.1: one convolution before a residual sum made outputs of no pixels,
then a segmentation fault), so all of them from the picture up to one layer are marked: the network changes its type
once. Those are also what bf16 hurts most: the first layers' weights and values are the widest, and few.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
"""What counts as a layer."""
_MARK = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
"""Not to be lowered from any type: bf16 included, which the CPU plug-in asks for by this name."""
_NOT_MARKED = ("Const", "Parameter", "Result")


def first_in_fp32(openvino: Any, core: Any, model: Any, count: int) -> Any:
    """The model with what comes before its layer number `count` (from 0, in the order of computing) kept in fp32."""
    with tempfile.TemporaryDirectory(prefix="infercam-") as folder:
        xml, weights = Path(folder) / "model.xml", Path(folder) / "model.bin"
        openvino.serialize(model, str(xml), str(weights))
        marked = _marked(xml.read_bytes(), count)
        return core.read_model(marked, openvino.Tensor(np.fromfile(weights, np.uint8)))


def _marked(xml: bytes, count: int) -> str:
    root = ET.fromstring(xml)
    seen = 0
    for layer in root.iterfind("layers/layer"):
        seen += layer.get("type") in LAYERS
        if seen > count:
            break
        if layer.get("type") not in _NOT_MARKED:
            _notes_of(layer).append(ET.Element("attribute", _MARK))
    return ET.tostring(root, "unicode")


def _notes_of(layer: ET.Element) -> ET.Element:
    """The layer's rt_info; made where the format wants it, after its data."""
    found = layer.find("rt_info")
    if found is None:
        found = ET.Element("rt_info")
        layer.insert(0 if layer.find("data") is None else 1, found)
    return found
