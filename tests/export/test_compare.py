"""The comparison of two networks: what it measures, on networks whose difference is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, InputError
from infercam.engine.data.sources import folder_source
from infercam.engine.method import reference
from infercam.engine.method.recipe import Recipe, Views
from infercam.export.compare import (
    SCALES,
    TOLERANCES,
    Comparison,
    Fidelity,
    OnnxNetwork,
    Sample,
    Tolerance,
    compare,
    maps_of,
    predicted,
    read_samples,
    relative_error,
)
from tests.engine import tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def network(bundle):
    return OnnxNetwork(bundle.graph("fp32"), bundle.manifest)


def pictures(count: int = 3) -> list[Sample]:
    return [Sample(f"p{i}", tiny.picture(37 + i, 53, i), [0, 1 + i % 4]) for i in range(count)]


def test_a_network_equals_itself(bundle, network):
    truth = np.zeros((37, 53), np.uint8)
    truth[5:20, 5:30] = 1
    samples = [Sample("p", tiny.picture(37, 53), mask=truth)]
    found = compare(network, network, samples, bundle.manifest)
    assert (found.response_error, found.worst_response_error, found.iou, found.miou_drop) == (0, 0, 1, 0)
    assert found.images == 1 and found.views == 2 * len(SCALES) and found.masks == 1
    assert found.missed(TOLERANCES["fp32"]) is None


def test_scores_that_are_no_means_must_be_given(bundle, network):
    manifest = bundle.manifest.model_copy(update={"decomposition": "none", "method": "patch-tokens"})
    sample = Sample("p", tiny.picture(37, 53))
    with pytest.raises(InputError, match="not made of its response"):
        compare(network, network, [sample], manifest)
    assert compare(network, network, [sample], manifest, scores=network.scores).images == 1


def test_a_known_error_is_measured(bundle, network):
    found = compare(network, lambda x: network(x) * np.float32(1.1), pictures(), bundle.manifest)
    assert found.response_error == pytest.approx(0.1 / 1.1, rel=1e-4)
    assert found.iou == pytest.approx(1, abs=1e-3)  # maps are normalised: a factor changes nothing


def test_shifted_maps_lose_iou_and_the_worst_image_is_named(bundle, network):
    bad = tiny.picture(38, 53, 1)

    def shifted(x):
        y = network(x)
        # only where the picture is p1's
        same = np.allclose(
            x[0], reference.normalise(reference.resize_pixels(bad, *x.shape[2:]), bundle.manifest.input)
        )
        return np.roll(y, 3, axis=3) if same else y

    found = compare(network, shifted, pictures(), bundle.manifest)
    assert found.iou < 0.99 and found.worst_iou < 0.9 and found.worst_image == "p1"
    assert "IoU of the maps" in found.missed(Tolerance(response_error=10, iou=0.999, miou_drop=1))


def test_the_maps_are_the_methods(bundle, network):
    """IoU against maps made by the reference, to show that the same maps are compared."""
    sample = pictures(1)[0]
    recipe = Recipe(views=Views(scales=SCALES, mirror=False))

    def noisy(x):
        return network(x) + np.float32(0.3) * np.roll(network(x), 1, axis=2)

    found = compare(network, noisy, [sample], bundle.manifest)
    maps = [
        reference.response_maps(sample.pixels, sample.classes, recipe, "baseline", n, bundle.manifest.input)
        > 0.3
        for n in (network, noisy)
    ]
    plain = [float((a & b).sum() / (a | b).sum()) for a, b in zip(*maps, strict=True)]
    assert found.maps == 2 * len(plain) and found.worst_iou <= min(plain) + 2e-3
    left = reference.response_maps(
        sample.pixels, sample.classes, recipe, "baseline", network, bundle.manifest.input
    )
    second = [
        reference.normalised(
            reference.multi_scale_response(
                sample.pixels,
                left.max(axis=0) < 0.7,
                recipe.views,
                recipe,
                n,
                sample.classes,
                bundle.manifest.input,
            )
        )
        for n in (network, noisy)
    ]
    # the second pass erases by the first network's map; the views are masked alike for both
    erased = [
        float(((a > 0.3) & (b > 0.3)).sum() / ((a > 0.3) | (b > 0.3)).sum())
        for a, b in zip(*second, strict=True)
    ]
    assert found.iou == pytest.approx(np.mean(plain + erased), abs=2e-3)


def test_values_that_are_not_finite_miss_every_tolerance(bundle, network):
    def broken(x):
        y = network(x).copy()
        y[..., 0, 0] = np.nan
        return y

    found = compare(network, broken, pictures(1), bundle.manifest)
    assert found.response_error > 1e6
    assert all(found.missed(t) for t in TOLERANCES.values())
    assert Fidelity.model_validate_json(found.model_dump_json()).missed(TOLERANCES["int8"])


def test_best_miou_falls_with_worse_maps(bundle, network):
    samples = []
    for i in range(3):
        pixels = tiny.picture(40, 52, i)
        recipe = Recipe(views=Views(scales=SCALES, mirror=False))
        m = reference.response_maps(pixels, [2], recipe, "baseline", network, bundle.manifest.input)[0]
        samples.append(Sample(f"p{i}", pixels, mask=(3 * (m > 0.4)).astype(np.uint8)))
    found = compare(network, lambda x: network(x)[..., ::-1].copy(), samples, bundle.manifest)
    assert found.reference_miou > 0.99 and found.miou_drop > 5
    assert "best mIoU falls" in found.missed(Tolerance(response_error=10, iou=0, miou_drop=0.1))
    assert "points on 3 masks" in found.line()


def test_classes_come_from_the_mask_else_from_the_network(bundle, network):
    none = compare(
        network,
        network,
        [Sample("p", tiny.picture(40, 52), mask=np.zeros((40, 52), np.uint8))],
        bundle.manifest,
    )
    assert none.maps == 0 and none.iou is None and none.reference_miou is None
    predicted = compare(network, network, [Sample("p", tiny.picture(40, 52))], bundle.manifest)
    assert predicted.maps >= 1 and predicted.reference_miou is None
    assert predicted.missed(TOLERANCES["fp32"]) is None


def test_a_fixed_size_gets_one_view(tmp_path):
    fixed = tiny.build(tmp_path / "fixed", fixed=(48, 64), batch=False)
    network = OnnxNetwork(fixed.graph("fp32"), fixed.manifest)
    assert compare(network, network, pictures(2), fixed.manifest).views == 2 * 2


def test_a_mask_of_another_size_and_no_samples_are_one_line(bundle, network):
    with pytest.raises(InputError, match="they must be equal"):
        compare(
            network,
            network,
            [Sample("p", tiny.picture(40, 52), mask=np.ones((3, 3), np.uint8))],
            bundle.manifest,
        )
    with pytest.raises(InputError, match="no images"):
        compare(network, network, [], bundle.manifest)


def test_a_graph_that_cannot_be_loaded_is_one_line(bundle, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(BackendError, match="ONNX Runtime cannot load it"):
        OnnxNetwork(tmp_path / "x.onnx", bundle.manifest)


def test_samples_are_read_one_at_a_time(tmp_path):
    source = folder_source(tiny.write_dataset(tmp_path, 3) / "images")
    source[2].path.write_bytes(b"no picture")
    samples = read_samples(source, lambda item: [1])
    assert [next(samples).id, next(samples).id] == ["p000", "p001"]
    with pytest.raises(InputError, match="p002"):
        next(samples)


def test_agreement_of_single_views() -> None:
    rng = np.random.default_rng(0)
    response = rng.standard_normal((5, 6, 7)).astype(np.float32)
    same, off = Comparison(), Comparison()
    same.add("p", [(response, response)], [0, 2], (24, 28))
    found = same.result()
    assert (found.error, found.iou, found.worst_iou, found.overlap, found.maps) == (0, 1, 1, 1, 2)
    off.add("p", [(response, response * np.float32(1.1))], [0], (24, 28))
    assert off.result().error == pytest.approx(1 / 11, rel=1e-5), "relative to the larger"
    assert off.result().overlap > 0.999, "maps are normalised"
    off.add("q", [(response, np.full_like(response, np.inf))], [1], (24, 28))
    found = off.result()
    assert (found.worst_iou, found.worst_image, found.views) == (0, "q", 2) and found.error > 1e6
    maps = maps_of([response[[1]]], (24, 28))
    assert maps.shape == (1, 24, 28) and 0.99 < maps.max() <= 1 and maps.min() >= 0


def test_maps_that_are_empty_in_both_say_nothing_of_the_agreement() -> None:
    response = np.ones((2, 3, 3), np.float32)
    response[0] = -1
    found = Comparison()
    found.add("p", [(response, response)], [0], (9, 9))
    assert (found.result().maps, found.result().iou, found.result().worst_image) == (0, 1, None)
    shown = response.copy()
    shown[0, 1, 1] = 1  # one of the two shows something: nothing of it is shared
    found.add("q", [(response, shown)], [0, 1], (9, 9))
    assert (found.result().maps, found.result().iou) == (2, 0.5)


def test_predicted_classes() -> None:
    assert predicted(np.array([-3.0, -1.0, -2.0])) == [1]
    assert predicted(np.array([3.0, -1.0, 2.0])) == [0, 2]
    assert predicted(np.array([3.0, -1.0, 4.0]), multi_label=False) == [2]


def test_relative_error():
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.array([2.0, -4.0]), np.array([2.0, -5.0])) == pytest.approx(0.2)


@pytest.mark.shared
def test_half_precision_of_a_real_network_keeps_its_maps(shared, tmp_path):
    """Rounding the input to float16 is far within the tolerance of fp16."""
    import onnxruntime as ort

    session = ort.InferenceSession(
        str(shared / "models" / "mobilenetv2_voc.onnx"), providers=["CPUExecutionProvider"]
    )
    # logits only: compare them as a 1×1 response, enough to run the whole path on a photo
    manifest = tiny.build(tmp_path / "b").manifest.model_copy(
        update={"classes": [f"c{i}" for i in range(20)], "bias": [0.0] * 20}
    )

    def run(x):
        return session.run(None, {session.get_inputs()[0].name: x})[0].reshape(len(x), 20, 1, 1)

    photo = next(iter(sorted((shared / "voc").rglob("JPEGImages/*.jpg"))))
    pixels = cv2.resize(cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB), (160, 120))
    found = compare(
        run,
        lambda x: run(x.astype(np.float16).astype(np.float32)),
        [Sample("p", pixels)],
        manifest,
        scales=(1.0, 2.0),
    )
    assert 0 < found.response_error < TOLERANCES["fp16"].response_error


def test_classes_where_the_bias_depends_on_the_image(tmp_path):
    """They are those of the scores: the response does not tell them."""
    bundle = tiny.build(tmp_path / "b", per_image_bias=True)
    network = OnnxNetwork(bundle.graph("fp32"), bundle.manifest)
    sample = Sample("p", tiny.picture(38, 53, 1))
    x = reference.normalise(sample.pixels, bundle.manifest.input)[None]
    predicted = [int(c) for c in np.flatnonzero(network.scores(x)[0] > 0)]
    asked = []

    def scores(x):
        asked.append(x)
        return network.scores(x)

    found = compare(network, network, [sample], bundle.manifest, scales=(1.0,), scores=scores)
    assert found.maps <= 2 * len(predicted) and len(asked) == 1
    np.testing.assert_allclose(asked[0], x, atol=1e-6)
