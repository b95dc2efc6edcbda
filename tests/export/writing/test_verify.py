"""Verification and writing: a wrong graph is caught and nothing is written; a bundle appears whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infercam.engine.bundle import Bundle, InputSpec
from infercam.engine.common.errors import ExportError
from infercam.export import export_onnx
from infercam.export.compare import relative_error
from infercam.export.graph.dynamic import SizeWishes
from infercam.export.graph.surgery import response_graph
from infercam.export.runtime import save
from infercam.export.writing import bundle_writer, onnx_source, slim
from infercam.export.writing.bundle_writer import write_as_it_agrees, write_bundle
from infercam.export.writing.onnx_source import onnx_scores
from infercam.export.writing.slim import simplify
from infercam.export.writing.verify import Disagreement, SourceLimit, texture, trials, verify
from tests.export.graph.vit_graphs import Vit

SPEC = InputSpec()


@pytest.fixture
def model(toys):
    t = toys.Toy()
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    return t.model(t.node("Gemm", y, t.const(t.array(toys.C, toys.K)), t.random(toys.C), transB=1))


@pytest.fixture
def graph(model):
    return response_graph(model)


@pytest.fixture
def scores(model, graph):
    return onnx_scores(model, graph)


def edited(graph, name, change):
    """The graph with one weight changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph.model)
    for i, t in enumerate(copy.graph.initializer):
        if t.name == name:
            copy.graph.initializer[i].CopyFrom(
                numpy_helper.from_array(change(numpy_helper.to_array(t)), name)
            )
            return replace(graph, model=copy)
    raise AssertionError(name)


def names(n):
    return [f"c{i}" for i in range(n)]


def write(out, graph, scores, **options):
    options = {
        "classes": names(graph.classes),
        "input_spec": SPEC,
        "multi_label": True,
        "source": {},
    } | options
    return write_bundle(out, graph, source_scores=scores, **options)


# --- the checks ------------------------------------------------------------------------------------------


def test_a_right_graph_passes_and_the_record_says_on_what(graph, scores):
    image = texture(400, 700, 5)
    found = verify(graph, scores, SPEC, images=[image, image[:50, :60]])
    assert found.max_score_error < 1e-5 and found.max_source_error < 1e-5
    assert found.tolerance == 1e-4
    shapes = [i.split()[-1] for i in found.inputs]
    assert len({s.split("x", 1)[1] for s in shapes}) >= 4  # several sizes
    assert {s.split("x")[0] for s in shapes} == {"1", "2", "3"}  # and batches
    assert found.inputs[-2:] == ["image 1: 1x3x183x320", "image 2: 1x3x64x64"]


def test_wrong_weight_is_caught(graph, scores):
    wrong = edited(graph, "response.weight", lambda w: w * np.float32(1.01))
    with pytest.raises(
        ExportError, match=r"differ from the source's by 0\.0\d+ .*at most 0\.0001.*on random"
    ):
        verify(wrong, scores, SPEC)


def test_recorded_bias_that_is_not_the_graphs_is_caught(graph, scores):
    with pytest.raises(ExportError, match="mean of the response plus bias differs from the scores"):
        verify(replace(graph, bias=graph.bias + 0.01), scores, SPEC)


def test_a_bias_output_that_is_not_what_the_scores_have_is_caught(toys):
    t = toys.Toy()
    y = t.node("MatMul", t.node("Flatten", t.node("GlobalAveragePool", t.features())), t.random(toys.K, 7))
    y = t.node("Relu", t.node("Add", y, t.random(7)))
    model = t.model(t.node("Gemm", y, t.random(7, toys.C), t.random(toys.C)))
    graph = response_graph(model)
    assert graph.per_image_bias and verify(graph, onnx_scores(model, graph), SPEC).max_score_error < 1e-5
    wrong = onnx.ModelProto()
    wrong.CopyFrom(graph.model)
    maker = next(n for n in wrong.graph.node if "bias" in n.output)
    maker.output[0] = "its own"
    for node in wrong.graph.node:
        node.input[:] = ["its own" if i == "bias" else i for i in node.input]
    wrong.graph.node.append(onnx.helper.make_node("Add", ["its own", "its own"], ["bias"]))
    with pytest.raises(ExportError, match="mean of the response plus bias differs from the scores"):
        verify(replace(graph, model=wrong), onnx_scores(model, graph), SPEC)


def test_what_a_customary_map_must_be(toys):
    """Its mean is not asked for; its size and that it is the same again are."""
    vit = Vit(toys)
    model = vit.classifier()
    graph = response_graph(model)
    found = verify(graph, onnx_scores(model, graph), SPEC)
    assert found.max_score_error is None and found.max_source_error < 1e-5
    with pytest.raises(
        Disagreement, match=r"the response is \(4, 6\) on random .*, not \(2, 3\) \(stride 16\)"
    ):
        verify(replace(graph, stride=16), onnx_scores(model, graph), SPEC)
    noisy = onnx.ModelProto()
    noisy.CopyFrom(graph.model)
    maker = next(n for n in noisy.graph.node if "response" in n.output)
    maker.output[0] = "quiet"
    noisy.graph.node.append(onnx.helper.make_node("RandomNormalLike", ["quiet"], ["noise"]))
    noisy.graph.node.append(onnx.helper.make_node("Add", ["quiet", "noise"], ["response"]))
    with pytest.raises(Disagreement, match="differs between two runs"):
        verify(replace(graph, model=noisy), onnx_scores(model, graph), SPEC)


def test_the_tolerance_is_relative_and_honoured(graph, scores):
    wrong = edited(graph, "response.weight", lambda w: w * np.float32(1.001))
    with pytest.raises(ExportError):
        verify(wrong, scores, SPEC)
    assert 1e-5 < verify(wrong, scores, SPEC, tolerance=1e-2).max_source_error < 1e-2


def test_scores_that_are_not_finite_are_caught(graph, scores):
    wrong = edited(graph, "response.weight", lambda w: w * np.float32(np.nan))
    with pytest.raises(ExportError, match="not finite"):
        verify(wrong, scores, SPEC)
    with pytest.raises(ExportError, match="source"):
        verify(graph, lambda x: scores(x) * np.nan, SPEC)


def test_a_dead_network_is_caught(toys):
    t = toys.Toy()
    f = t.node("Relu", t.node("Mul", t.features(), t.const(np.float32(0))))
    y = t.node("Flatten", t.node("GlobalAveragePool", f))
    model = t.model(t.node("Gemm", y, t.random(toys.C, toys.K), t.random(toys.C), transB=1))
    graph = response_graph(model)
    with pytest.raises(ExportError, match="same response"):
        verify(graph, onnx_scores(model, graph), SPEC)


def test_source_of_another_number_of_classes_is_caught(graph, scores):
    with pytest.raises(ExportError, match=r"source gives scores \(1, 4\)"):
        verify(graph, lambda x: scores(x)[:, :4], SPEC)


def test_inputs_that_the_source_cannot_run_are_recorded_as_not_compared(graph, scores):
    def limited(x):
        if x.shape[2:] != (64, 64):
            raise SourceLimit("the source takes 64x64 only")
        return scores(x)

    found = verify(graph, limited, SPEC)
    assert sum("not compared: the source takes 64x64 only" in i for i in found.inputs) == 4

    def never(x):
        raise SourceLimit("broken")

    with pytest.raises(ExportError, match="none of the inputs: broken"):
        verify(graph, never, SPEC)


@pytest.mark.parametrize("pads", [0, 1])
def test_a_source_that_pools_a_fixed_window_is_compared_where_that_is_the_whole_map(toys, pads):
    """AvgPool2d(7) exported with free axes: elsewhere the source fails, or means something else."""
    t = toys.Toy()
    y = t.node("Conv", t.features(), t.random(toys.K, toys.K, 3, 3), pads=[pads] * 4)
    y = t.node("AveragePool", t.node("Relu", y), kernel_shape=[20, 20], name="pool")
    y = t.node("Reshape", y, t.const(np.array([-1, toys.K])))
    model = t.model(t.node("Gemm", y, t.random(toys.C, toys.K), transB=1))
    graph = response_graph(model)
    assert graph.source_size == ((80, 80) if pads else (88, 88))
    found = verify(graph, onnx_scores(model, graph), SPEC)
    side = graph.source_size[0]
    compared = [i for i in found.inputs if "not compared" not in i]
    assert compared == [f"random 1x3x{side}x{side}", f"textures 1x3x{side}x{side}"]


def test_a_fixed_source_is_compared_at_its_size_only(toys):
    """The graph is free in size, its source is not: each is run where it can be."""
    t = toys.Toy(shape=(2, 3, 40, 48))
    y = t.node("Reshape", t.node("GlobalAveragePool", t.features()), t.const(np.array([2, toys.K])))
    model = t.model(t.node("Gemm", y, t.random(toys.C, toys.K), transB=1))
    graph = response_graph(model)
    assert graph.height is None and graph.dynamic_batch
    found = verify(graph, onnx_scores(model, graph), SPEC)
    compared = [i for i in found.inputs if "not compared" not in i]
    assert len(compared) == 2 and all(i.endswith("x3x40x48") for i in compared)
    assert any(i.startswith("textures 3x") for i in compared)  # a batch of 3 through a source of 2


def test_fixed_graphs_are_verified_at_their_size(graph):
    fixed = replace(graph, height=48, width=80, dynamic_batch=False)
    shapes = {t.array.shape for t in trials(fixed, SPEC, [texture(300, 200, 0)])}
    assert shapes == {(1, 3, 48, 80)}


def test_relative_error():
    assert relative_error(np.array([100.0]), np.array([101.0])) == pytest.approx(1 / 101)
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.array([1e-9]), np.array([0.0])) == 1


def test_images_of_a_wrong_kind_are_refused(graph, scores):
    with pytest.raises(ExportError, match="uint8"):
        verify(graph, scores, SPEC, images=[np.zeros((10, 10, 3), np.float32)])


def test_the_source_is_run_as_it_is_where_that_gives_the_logits(toys, model, graph, monkeypatch):
    x = toys.picture(2, 64, 70)
    want = onnx_scores(model, graph)(x)
    monkeypatch.setattr(onnx_source, "prepare", None)  # copies the model
    np.testing.assert_array_equal(onnx_scores(model, graph)(x), want)
    np.testing.assert_array_equal(onnx_scores(model, graph, [2, 0])(x), want[:, [2, 0]])


# --- simplification ------------------------------------------------------------------------------------------


def test_simplify_keeps_results_and_interface(graph, toys):
    simple = simplify(graph)
    x = toys.picture(2, 70, 50)
    for ours, theirs in zip(
        toys.run(graph.model, x, "scores", "response"),
        toys.run(simple.model, x, "scores", "response"),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert not simple.notes


@pytest.mark.parametrize("fold", [True, False])
def test_a_graph_of_many_nodes_is_folded_by_onnx_runtime(toys, monkeypatch, fold):
    """Constants are folded, what does nothing goes, the operators stay ONNX's; batch norms stay where they are to."""
    t = toys.Toy()
    x = t.node("Conv", t.features(), t.random(toys.K, toys.K, 1, 1))
    x = t.node("BatchNormalization", x, *(t.const(np.full(toys.K, v, np.float32)) for v in (2, 1, 0.5, 3)))
    x = t.node("Mul", t.node("Identity", x), t.node("Sqrt", t.const(np.float32(4))))
    y = t.node("Flatten", t.node("GlobalAveragePool", x))
    graph = response_graph(
        t.model(t.node("Gemm", y, t.random(toys.C, toys.K), transB=1)), fold_batch_norm=False
    )
    monkeypatch.setattr(slim, "_MANY", 0)
    found = simplify(graph, fold_batch_norm=fold)
    kinds = {n.op_type for n in found.model.graph.node}
    assert {n.domain for n in found.model.graph.node} == {""} and not found.notes
    assert len(found.model.opset_import) == 1 and found.model.ir_version == graph.model.ir_version
    assert "Sqrt" not in kinds and "Identity" not in kinds and ("BatchNormalization" in kinds) is not fold
    dims = [d.dim_param or d.dim_value for d in found.model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["N", 3, "H", "W"]
    x = toys.picture(2, 70, 50)
    for ours, theirs in zip(
        *(toys.run(m, x, "scores", "response") for m in (graph.model, found.model)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_folded_graph_with_operators_of_the_runtimes_own_is_dropped_with_a_note(graph, monkeypatch):
    def write(file, out, *, without):
        model = onnx.load(str(file))
        model.graph.node[0].domain = "com.microsoft"
        onnx.save(model, str(out))

    monkeypatch.setattr(slim, "_MANY", 0)
    monkeypatch.setattr(slim, "write_basic", write)
    kept = simplify(graph)
    assert kept.model is graph.model and kept.notes == ["not simplified: ONNX Runtime gave no model"]


@pytest.mark.parametrize("damage", ["raise", "exit", "results", "nothing", "outputs"])
def test_simplification_that_goes_wrong_is_dropped_with_a_note(graph, monkeypatch, damage):
    import onnxslim

    def damaged(model, **options):
        if damage == "raise":
            raise RuntimeError("boom")
        if damage == "exit":
            raise SystemExit(1)
        if damage == "results":
            return edited(replace(graph, model=model), "response.weight", lambda w: w * 2).model
        if damage == "outputs":
            del model.graph.output[1]
            return model
        return None

    monkeypatch.setattr(onnxslim, "slim", damaged)
    kept = simplify(graph)
    assert kept.model is graph.model
    assert len(kept.notes) == 1 and kept.notes[0].startswith("not simplified")


# --- writing -------------------------------------------------------------------------------------------------


def test_write_bundle_round_trip(tmp_path, graph, scores):
    spec = InputSpec(mean=(1, 2, 3), colour="BGR")
    bundle = write(tmp_path / "b", graph, scores, input_spec=spec, source={"kind": "test"}, multi_label=False)
    again = Bundle.load(tmp_path / "b")
    m = again.manifest
    assert (m.name, m.classes, m.multi_label, m.stride) == ("b", names(5), False, 4)
    assert m.input.mean == (1, 2, 3) and m.input.colour == "BGR" and m.input.name == "image"
    assert m.input.height is None and m.input.dynamic_batch
    np.testing.assert_array_equal(np.array(m.bias, np.float32), graph.bias)
    assert m.source["kind"] == "test" and "onnxruntime" in m.tools
    assert m.verification is not None and m.verification.max_source_error < 1e-5
    assert again.graph().read_bytes() == bundle.graph().read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b"]


def test_the_graphs_own_input_wins_over_the_spec(tmp_path, model, toys):
    fixed = replace(response_graph(model), height=64, width=64)
    bundle = write(tmp_path / "b", fixed, onnx_scores(model, fixed), input_spec=InputSpec(name="other"))
    assert (bundle.manifest.input.name, bundle.manifest.input.height) == ("image", 64)


def test_a_failed_check_writes_nothing(tmp_path, graph, scores):
    wrong = edited(graph, "response.weight", lambda w: -w)
    with pytest.raises(ExportError, match="verification"):
        write(tmp_path / "deep" / "b", wrong, scores)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["a"], "1 class names for a classifier of 5"),
        (["a", " ", "b", "c", "d"], "empty"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path, graph, scores, classes, words):
    with pytest.raises(ExportError, match=words):
        write(tmp_path / "b", graph, scores, classes=classes)
    assert list(tmp_path.iterdir()) == []


def test_class_names_that_repeat_are_numbered(tmp_path, graph, scores):
    """ImageNet's list has `crane` and `maillot` twice."""
    bundle = write(tmp_path / "b", graph, scores, classes=["crane", "crane (2)", "crane", "cat", "crane"])
    assert bundle.manifest.classes == ["crane", "crane (2)", "crane (3)", "cat", "crane (4)"]
    assert any("2 is 'crane (3)', 4 is 'crane (4)'" in n for n in bundle.manifest.source["notes"])


def test_only_a_bundle_is_ever_replaced(tmp_path, graph, scores):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"precious")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(folder)
    for name in ("photos", "file", "link"):
        for overwrite in (False, True):
            with pytest.raises(ExportError, match="choose another path"):
                write(tmp_path / name, graph, scores, overwrite=overwrite)
    assert (folder / "holiday.jpg").read_bytes() == b"precious"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", graph, scores)
    assert Bundle.load(tmp_path / "empty").manifest.name == "empty"


def test_an_existing_bundle_is_replaced_only_when_asked(tmp_path, graph, scores):
    out = tmp_path / "b"
    write(out, graph, scores, name="first")
    with pytest.raises(ExportError, match="--overwrite"):
        write(out, graph, scores, name="second")
    assert Bundle.load(out).manifest.name == "first"
    write(out, graph, scores, name="second", overwrite=True)
    assert Bundle.load(out).manifest.name == "second"
    (out / "response.onnx").write_bytes(b"damaged")
    write(out, graph, scores, name="third", overwrite=True)  # a damaged bundle may be replaced as well
    assert Bundle.load(out).manifest.name == "third"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("step", ["save", "rename"])
def test_interruption_leaves_the_old_bundle_and_no_rest(tmp_path, graph, scores, monkeypatch, step):
    out = tmp_path / "b"
    write(out, graph, scores, name="first")
    before = (out / "manifest.json").read_bytes()
    if step == "save":

        def full(*_args, **_options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(bundle_writer, "save", full)
        expected = pytest.raises(ExportError, match="No space left")
    else:
        plain = Path.rename

        def rename(self, target):
            if self.name.startswith(".tmp-") and Path(target) == out:
                raise KeyboardInterrupt
            return plain(self, target)

        monkeypatch.setattr(Path, "rename", rename)
        expected = pytest.raises(KeyboardInterrupt)
    with expected:
        write(out, graph, scores, name="second", overwrite=True)
    assert (out / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_unwritable_place_is_one_line(tmp_path, graph, scores):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot write the bundle") as caught:
        write(tmp_path / "file" / "b", graph, scores)
    assert "\n" not in str(caught.value)


def test_weights_too_large_for_one_file_lie_beside_it(tmp_path, graph, scores, monkeypatch):
    """What happens above 2 GB, at a limit of 100 bytes."""
    monkeypatch.setattr(bundle_writer, "save", lambda model, file: save(model, file, limit=100, inline=64))
    bundle = write(tmp_path / "b", graph, scores)
    assert set(bundle.manifest.files) == {"response.onnx", "response.onnx.data"}
    import onnxruntime

    session = onnxruntime.InferenceSession(str(bundle.graph()), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
    np.testing.assert_allclose(session.run(["scores"], {"image": x})[0], scores(x), rtol=1e-4, atol=1e-5)
    (tmp_path / "b" / "response.onnx.data").write_bytes(b"changed")
    with pytest.raises(Exception, match=r"response\.onnx\.data"):
        Bundle.load(tmp_path / "b")


def test_the_manifest_is_plain_json_with_the_schema(tmp_path, graph, scores):
    write(tmp_path / "b", graph, scores)
    raw = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert raw["schema_version"] == 3 and raw["graphs"] == {"fp32": "response.onnx"}


def test_where_other_sizes_disagree_with_the_source_its_own_is_kept(graph):
    """Sizes are free if a graph runs there; what it computes there, only the source can say."""
    fixed = replace(graph, height=64, width=64)
    asked, written = [], []

    def graph_of(wishes):
        asked.append(wishes)
        return graph if wishes.free else fixed

    def write_one(given):
        if given.height is None:
            raise Disagreement("verification: the scores differ from the source's by 0.4 on random 1x3x97x33")
        written.append(given)
        return given

    found = write_as_it_agrees([graph_of], write_one, SizeWishes(own=(64, 64)))
    assert written == [found] and [w.free for w in asked] == [True, False] and asked[1].own == (64, 64)
    assert found.notes[0].startswith("height and width fixed at 64x64: at other sizes the scores differ")
    with pytest.raises(Disagreement):
        write_as_it_agrees([lambda wishes: replace(fixed, height=None)], write_one, SizeWishes())


def test_what_float32_cannot_decide_is_no_difference(toys):
    """Large numbers that nearly cancel: what is left is rounding, another one in any other order of summing."""
    t = toys.Toy()
    up = np.full((8, toys.K), 1e3) + 0.1 * t.array(8, toys.K)
    down = t.array(toys.K, 8)
    down -= down.mean(1, keepdims=True)
    y = t.node("Conv", t.features(), t.const(up[:, :, None, None].astype(np.float32)))
    y = t.node("Conv", t.node("Relu", y), t.const(down[:, :, None, None]))
    w = t.array(toys.C, toys.K)
    model = t.model(t.node("Gemm", t.node("Flatten", t.node("GlobalAveragePool", y)), t.const(w), transB=1))
    graph = response_graph(model)

    def exact(x):
        pooled = toys.run(model, x, "features")[0].astype(np.float64).mean((2, 3))
        return (pooled @ up.astype(np.float32).astype(np.float64).T @ down.T.astype(np.float64) @ w.T).astype(
            np.float32
        )

    found = verify(graph, exact, SPEC)
    assert found.max_source_error > 1e-4 and any("rounding" in i for i in found.inputs)
    with pytest.raises(ExportError, match="differ from the source's"):
        verify(graph, lambda x: exact(x) * 1.02, SPEC)


@pytest.mark.parametrize("whole", [False, True])
def test_a_source_in_half_precision(toys, tmp_path, whole):
    """Half weights and computation, behind a float32 or a float16 input: read as float32, compared with it."""

    t = toys.Toy()
    half = np.float16
    y = "image" if whole else t.node("Cast", "image", to=TensorProto.FLOAT16)
    y = t.node("Conv", y, t.const(t.array(toys.K, 3, 3, 3).astype(half)), strides=[4, 4], pads=[1] * 4)
    y = t.node("Flatten", t.node("GlobalAveragePool", t.node("Relu", y)))
    y = t.node("Gemm", y, t.const(t.array(toys.C, toys.K).astype(half)), transB=1)
    kind = TensorProto.FLOAT16 if whole else TensorProto.FLOAT
    y = y if whole else t.node("Cast", y, to=TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info("image", kind, t.shape)]
    onnx.save(t.model(y, inputs=inputs, elem=kind), tmp_path / "m.onnx")
    bundle = export_onnx(tmp_path / "m.onnx", tmp_path / "b")
    v = bundle.manifest.verification
    assert 0 < v.max_source_error < 5e-3 and v.max_score_error < 1e-5
    assert any("float16" in n for n in bundle.manifest.source["notes"])
    assert not any("not compared" in i for i in v.inputs)


def test_of_several_sources_the_first_that_agrees_is_written(graph):
    """Free and rejected, refused, free and right: the first is kept for the case that no other is right."""
    asked = []

    def source(name, refused=False):
        def graph_of(wishes):
            asked.append((name, wishes.free))
            if refused:
                raise ExportError("no head")
            return replace(
                graph, logits=name, height=None if wishes.free else 64, width=None if wishes.free else 64
            )

        return graph_of

    def write_one(given):
        if given.logits == "wrong" and given.height is None:
            raise Disagreement("verification: the scores differ from the source's by 0.4 on random 1x3x97x33")
        return given

    sources = [source("wrong"), source("headless", refused=True), source("right"), source("late")]
    assert write_as_it_agrees(iter(sources), write_one, SizeWishes()).logits == "right"
    assert asked == [("wrong", True), ("headless", True), ("right", True)]
    found = write_as_it_agrees(sources[1::-1], write_one, SizeWishes())
    assert found.logits == "wrong" and found.height == 64
    with pytest.raises(ExportError, match="no head"):
        write_as_it_agrees(sources[1:2], write_one, SizeWishes())


def test_a_source_that_declares_no_size_but_has_one(toys, tmp_path):
    """A table of positions of 224 pixels, interpolated in the graph: the source is compared where it runs."""
    t = toys.Toy()
    y = t.node("Conv", "image", t.random(toys.K, 3, 16, 16, scale=0.05), strides=[16, 16])
    y = t.node("Reshape", y, t.const(np.array([0, toys.K, -1])))
    y = t.node("Add", t.node("Transpose", y, perm=[0, 2, 1]), t.const(t.array(1, 196, toys.K)))
    y = t.node("ReduceMean", t.node("Relu", y), axes=[1], keepdims=0)
    onnx.save(t.model(t.node("Gemm", y, t.random(toys.C, toys.K), transB=1)), tmp_path / "m.onnx")
    bundle = export_onnx(tmp_path / "m.onnx", tmp_path / "b")
    compared = [i for i in bundle.manifest.verification.inputs if "not compared" not in i]
    assert compared and all("224x224" in i for i in compared)
