"""A tiny classifier bundle with fixed random weights, its network as a plain callable, and pictures for it."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from infercam.engine.bundle import Bundle, InputSpec, Manifest, ResponseCells, file_entry

CLASSES = ["cat", "dog", "horse", "cow", "sheep"]


def weights(stride: int = 4, classes: int = 5, seed: int = 7) -> dict[str, np.ndarray]:
    """3×3 convolutions of stride 2 until `stride`, then the linear layer as a 1×1 convolution."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    channels = 3
    for i in range(stride.bit_length() - 1):
        w = rng.normal(size=(8, channels, 3, 3)) / np.sqrt(channels * 4.5)
        out[f"w{i}"] = w.astype(np.float32)
        out[f"b{i}"] = rng.normal(scale=0.1, size=8).astype(np.float32)
        channels = 8
    out["head"] = rng.normal(loc=0.1, size=(classes, channels, 1, 1)).astype(np.float32)
    out["bias"] = rng.normal(size=classes).astype(np.float32)
    return out


def model(
    stride: int = 4,
    classes: int = 5,
    fixed: tuple[int, int] | None = None,
    batch: bool = True,
    per_image_bias: bool = False,
):
    """The response graph: image -> scores, response; and bias, 10 times the sigmoid of the response's mean."""
    w = weights(stride, classes)
    nodes, x = [], "image"
    for i in range(stride.bit_length() - 1):
        nodes.append(
            helper.make_node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"], strides=[2, 2], pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        x = f"r{i}"
    nodes += [
        helper.make_node("Conv", [x, "head"], ["response"]),
        helper.make_node("GlobalAveragePool", ["response"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Add", ["flat", "bias"], ["scores"]),
    ]
    outputs = [("scores", [classes]), ("response", [classes, "gh", "gw"])]
    if per_image_bias:
        w["ten"] = np.full(1, 10, np.float32)
        del w["bias"]
        nodes[-1:-1] = [
            helper.make_node("Sigmoid", ["flat"], ["gate"]),
            helper.make_node("Mul", ["gate", "ten"], ["bias"]),
        ]
        outputs.append(("bias", [classes]))
    n = "n" if batch else 1
    size = list(fixed) if fixed else ["h", "w"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [n, 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [n, *shape]) for name, shape in outputs],
        [numpy_helper.from_array(v, k) for k, v in w.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def build(
    folder: Path,
    stride: int = 4,
    colour: str = "RGB",
    fixed: tuple[int, int] | None = None,
    batch: bool = True,
    multi_label: bool = True,
    smallest: int = 1,
    multiple: int = 1,
    per_image_bias: bool = False,
    cells: bool = False,
) -> Bundle:
    """Write the bundle and load it. cells: with the response's size as arithmetic (side over stride, rounded up)."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model(stride, len(CLASSES), fixed, batch, per_image_bias), str(folder / "response.onnx"))
    height, width = fixed or (None, None)
    up = [0] + [1] * (stride - 1)
    manifest = Manifest(
        name=f"tiny-{stride}",
        classes=CLASSES,
        multi_label=multi_label,
        stride=stride,
        input=InputSpec(
            colour=colour,
            dynamic_batch=batch,
            height=height,
            width=width,
            smallest=smallest,
            multiple=multiple,
        ),
        bias=[0.0] * len(CLASSES) if per_image_bias else weights(stride)["bias"].tolist(),
        per_image_bias=per_image_bias,
        graphs={"fp32": "response.onnx"},
        files={"response.onnx": file_entry(folder / "response.onnx")},
        cells=ResponseCells(step=1, rows=up, columns=up, checked=1) if cells else None,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return Bundle.load(folder)


def network(bundle: Bundle):
    """reference.Network on ONNX Runtime, one thread, one view at a time."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(bundle.graph("fp32")), options, providers=["CPUExecutionProvider"])
    return lambda x: np.concatenate([session.run(["response"], {"image": v[None]})[0] for v in x])


def numpy_network(stride: int = 4):
    """The same network in NumPy and float64: shares nothing with ONNX Runtime."""
    w = {k: v.astype(np.float64) for k, v in weights(stride).items()}

    def conv(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
        height, width = (x.shape[1] + 1) // 2, (x.shape[2] + 1) // 2
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
        out = np.broadcast_to(bias[:, None, None], (len(kernel), height, width)).copy()
        for dy in range(3):
            for dx in range(3):
                part = padded[:, dy : dy + 2 * height : 2, dx : dx + 2 * width : 2][:, :height, :width]
                out += np.einsum("oc,chw->ohw", kernel[:, :, dy, dx], part)
        return np.maximum(out, 0)

    def run(x: np.ndarray) -> np.ndarray:
        out = []
        for y in x.astype(np.float64):
            for i in range(stride.bit_length() - 1):
                y = conv(y, w[f"w{i}"], w[f"b{i}"])
            out.append(np.einsum("oc,chw->ohw", w["head"][:, :, 0, 0], y))
        return np.stack(out).astype(np.float32)

    return run


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """H×W×3 uint8: smooth blobs under a little noise, so that responses have hills and edges."""
    rng = np.random.default_rng([seed, height, width])
    coarse = rng.uniform(0, 255, (max(2, height // 8), max(2, width // 8), 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, 3)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def write_dataset(folder: Path, count: int, size: tuple[int, int] = (40, 52)) -> Path:
    """`count` PNG pictures of slightly different sizes and labels.json (1 to 3 classes each)."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    labels = {}
    for i in range(count):
        Image.fromarray(picture(size[0] + i % 3, size[1] + i % 2, i)).save(images / f"p{i:03}.png")
        labels[f"p{i:03}"] = [CLASSES[(i + k) % 5] for k in range(1 + i % 3)]
    (folder / "labels.json").write_text(json.dumps({"classes": CLASSES, "labels": labels}))
    return folder
