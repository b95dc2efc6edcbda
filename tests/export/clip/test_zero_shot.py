"""Zero-shot maps: MaskCLIP's definition in NumPy beside what the graph gives; names, prompts and vectors from
files."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError
from infercam.export.clip.texts import PROMPTS, read_prompts, read_vectors, text_vectors
from infercam.export.graph.surgery import response_graph
from infercam.export.graph.wishes import MapWishes, ZeroShot
from tests.export.graph.vit_graphs import D, Vit

E = 6  # width of the embeddings
NAMES, BACKGROUND = ["cat", "dog", "boat"], ["sky", "grass"]


@pytest.fixture(scope="module")
def texts():
    rows = np.random.default_rng(5).standard_normal((5, E))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Encoder(Vit):
    """Class token -> norm -> projection, as CLIP's image encoders end."""

    def __init__(self, toys, **options) -> None:
        super().__init__(toys, **options)
        self.projection = self._rng.normal(0, 0.5, (D, E)).astype(np.float32)

    def encoder(self, *, unit=False, rank=4) -> onnx.ModelProto:
        t = self.toy()
        y = self.trunk(t, norm=False, rank=rank)
        y = t.node("Gather", y, t.const(np.int64(0)), axis=1, name="take_class")
        y = t.node("MatMul", self._norm(t, y, "gamma", "beta"), t.const(self.projection), name="project")
        if unit:
            y = t.node("Div", y, t.node("ReduceL2", y, axes=[-1], keepdims=1))
        return t.model(y)


def layer_norm(x, gamma, beta):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * gamma + beta


def maskclip(vit, x, texts, scale, rank=4) -> np.ndarray:
    """ECCV 2022, section 3.2, in float64: in the last block out_proj(v_proj(norm(x))) instead of attention; residual
    and hidden layer stay. N×K×h×w chances over all texts."""
    w = {k: v.astype(np.float64) for k, v in vit.w.items()}
    t = vit.toy()
    last = vit.blocks - 1
    vit.blocks = last
    try:
        model = t.model(vit.trunk(t, norm=False, rank=rank))
    finally:
        vit.blocks = last + 1
    y = np.concatenate([vit.toys.run(model, x[i : i + 1])[0] for i in range(len(x))]).astype(np.float64)
    y = y + layer_norm(y, w[f"{last}.gamma"], w[f"{last}.beta"]) @ w[f"{last}.v"] @ w[f"{last}.out"]
    y = y + np.tanh(y @ w[f"{last}.mlp"])
    y = layer_norm(y[:, vit.extra :], w["gamma"], w["beta"]) @ vit.projection.astype(np.float64)
    return chances(y, texts, scale).transpose(0, 2, 1).reshape(len(x), len(texts), *vit.grid)


def chances(y, texts, scale):
    logits = scale * (y / np.linalg.norm(y, axis=-1, keepdims=True)) @ texts.T.astype(np.float64)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(("rank", "opset", "unit"), [(4, 17, False), (3, 18, False), (4, 13, True)])
def test_patches_by_their_values(toys, texts, rank, opset, unit):
    vit = Encoder(toys, opset=max(opset, 17))
    if opset < 17:
        vit.opset = opset
        vit._norm = written_out(vit)
    model = vit.encoder(unit=unit, rank=rank)
    graph = response_graph(model, maps=MapWishes(zero_shot=ZeroShot(texts, 3, 10.0)))
    x = toys.picture(2, *vit.size)
    scores, response = toys.run(graph.model, x, "scores", "response")
    all_chances = maskclip(vit, x, texts, 10.0, rank)
    np.testing.assert_allclose(response, all_chances[:, :3], rtol=1e-3, atol=1e-5)
    assert (all_chances[:, 3:].sum(1) > 0.05).any(), "the background must matter here"
    embedding = vit.logits(model, x)
    cosines = embedding / np.linalg.norm(embedding, axis=1, keepdims=True) @ texts[:3].T
    np.testing.assert_allclose(scores, 10 * cosines, rtol=1e-3, atol=1e-4)
    assert (graph.method, graph.decomposition, graph.multi_label) == ("maskclip", "none", False)
    assert graph.height is None and graph.multiple == graph.stride == 8


def written_out(vit):
    def norm(t, y, gamma, beta, **_):
        centred = t.node("Sub", y, t.node("ReduceMean", y, axes=[-1]))
        variance = t.node("ReduceMean", t.node("Mul", centred, centred), axes=[-1])
        y = t.node("Div", centred, t.node("Sqrt", t.node("Add", variance, t.const(np.float32(1e-5)))))
        return t.node("Add", t.node("Mul", y, t.const(vit.w[gamma])), t.const(vit.w[beta]))

    return norm


def test_a_pooled_encoder_is_refused(toys, texts):
    t = toys.Toy()
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    model = t.model(t.node("MatMul", y, t.random(toys.K, E)))
    with pytest.raises(ExportError, match="other means than one class token"):
        response_graph(model, maps=MapWishes(zero_shot=ZeroShot(texts, 3, 10.0)))


def test_texts_of_another_width_are_refused(toys, texts):
    model = Encoder(toys).encoder()
    with pytest.raises(ExportError, match="embeddings have 6 numbers, the texts 5"):
        response_graph(model, maps=MapWishes(zero_shot=ZeroShot(texts[:, :5], 3, 10.0)))


# --- texts -------------------------------------------------------------------------------------------------


def test_prompts_are_averaged_as_unit_vectors():
    table = {"a cat": [3.0, 0.0], "the cat": [0.0, 0.5]}
    found = text_vectors(["cat"], ["a {}", "the {}"], lambda ts: np.array([table[t] for t in ts]))
    np.testing.assert_allclose(found, [[np.sqrt(0.5), np.sqrt(0.5)]], rtol=1e-6)
    with pytest.raises(ExportError, match="zero or not finite"):
        text_vectors(["cat"], ["a {}"], lambda ts: np.zeros((1, 2)))


def test_prompts_need_one_place_for_the_name(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a photo of a {}.\n\na {} in {}\n")
    with pytest.raises(ExportError, match=r"one \{\} for the name, not 'a \{\} in \{\}'"):
        read_prompts(file)
    file.write_text("\n a sketch of {} \n")
    assert list(read_prompts(file)) == ["a sketch of {}"]
    assert read_prompts(None) == PROMPTS


def test_text_vectors_from_files(tmp_path, texts):
    np.save(tmp_path / "t.npy", 3 * texts)
    np.testing.assert_allclose(read_vectors(tmp_path / "t.npy", 5), texts, rtol=1e-6)
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file({"text": texts}, tmp_path / "t.safetensors")
    np.testing.assert_allclose(read_vectors(tmp_path / "t.safetensors", 5), texts, rtol=1e-6)
    safetensors.save_file({"a": texts, "b": texts}, tmp_path / "two.safetensors")
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "vector.npy", texts[0])
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    for name, count, words in (
        ("t.npy", 4, "5 text vectors for 4 names"),
        ("two.safetensors", 5, "2 tensors; one matrix"),
        ("pickled.npy", 1, "no matrix of numbers"),
        ("vector.npy", 1, "not a matrix of floats"),
        ("broken.safetensors", 1, "no matrix of numbers"),
        ("absent.npy", 1, "no matrix of numbers"),
    ):
        with pytest.raises(ExportError, match=words):
            read_vectors(tmp_path / name, count)


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def files(toys, texts, tmp_path):
    onnx.save(Encoder(toys).encoder(), tmp_path / "image.onnx")
    np.save(tmp_path / "text.npy", texts)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "background.txt").write_text("\n".join(BACKGROUND))
    return tmp_path


def test_export_of_an_image_encoder_and_vectors(files, infercam):
    arguments = ("--clip", files / "image.onnx", "--text", files / "text.npy", "--names", files / "names.txt")
    out = infercam(*arguments, "--background", files / "background.txt", "-o", files / "b")
    assert "maskclip: customary" in out and "the background dropped" in out
    m = Bundle.load(files / "b").manifest
    assert m.classes == NAMES and m.source["background"] == BACKGROUND and not m.multi_label
    assert m.input.mean[0] == pytest.approx(0.48145466) and m.verification.max_source_error < 1e-4
    with pytest.raises(ExportError, match="5 text vectors for 3 names"):
        infercam(*arguments, "-o", files / "c")


def test_what_does_not_go_together(files, infercam):
    for arguments, words in (
        (("--clip", files / "image.onnx", "-o", files / "b"), "needs the classes to look for: --names"),
        (("--clip", files / "image.onnx", "--names", files / "names.txt", "-o", files / "b"), "--text FILE"),
        (("--clip", "ViT-B-32", "--names", files / "names.txt", "-o", files / "b"), "never downloaded"),
        (("--clip", files, "--names", files / "names.txt", "-o", files / "b"), "no CLIP"),
        (("--clip", "x", files / "image.onnx", "-o", files / "b"), "give one of MODEL.onnx"),
        (
            ("--names", files / "names.txt", files / "image.onnx", "-o", files / "b"),
            "--names goes with --clip",
        ),
        (("--clip", "x", "--mean", "0", "-o", files / "b"), "--mean goes with a classifier"),
    ):
        with pytest.raises(ExportError, match=words):
            infercam(*arguments)


def test_one_name_alone_is_no_choice(files, infercam):
    (files / "names.txt").write_text("cat\n")
    np.save(files / "text.npy", np.ones((1, E), np.float32))
    arguments = ("--clip", files / "image.onnx", "--text", files / "text.npy", "--names", files / "names.txt")
    with pytest.raises(ExportError, match="one name alone always fits best"):
        infercam(*arguments, "-o", files / "b")
