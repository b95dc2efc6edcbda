"""Saliency maps without ground truth: robust background detection (Zhu, Liang, Wei, Sun, CVPR 2014).

What reaches along the picture's border is background; what differs from it, near by, is salient. The photo is
cut into superpixels; two of them are as far apart as their colours and, where weights are given, as the
features of a frozen ImageNet classifier. Nothing here has seen a mask, a saliency data set, or an image's
labels, and no class score is used.

    1. background: superpixels whose geodesic neighbourhood touches the border over much of its perimeter
    2. foreground: contrast with that background, weighted by distance in the picture
    3. both, and smoothness between neighbours, in one least-squares problem
    4. a guided filter to the photo's edges, and a sigmoid: maps of trained networks, which the loss of eq. 4
       is made for, are nearly black and white
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from infercam.engine.bundle import sha256_file
from infercam.trainer.loop.config import save_config
from infercam.trainer.photos.job import JobSummary, run_job
from infercam.trainer.photos.photos import Photos
from infercam.trainer.saliency.files import saliency_file, write_saliency
from infercam.trainer.saliency.superpixels import border, lab, means, neighbours, slic

if TYPE_CHECKING:
    from infercam.trainer.networks.backbones import Backbone

Matrix = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]


class SaliencyConfig(BaseModel):
    """The paper's constants for colours alone; `reach` 14 and the weights are ours for colours and features."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: int = Field(default=250, ge=32, description="longer side of the picture that is segmented, pixels")
    superpixels: int = Field(default=250, ge=4)
    feature_side: int = Field(default=320, ge=32, description="longer side of the network's input, pixels")
    colour_weight: float = Field(default=0.5, ge=0, description="of Lab distance beside features")
    feature_weight: float = Field(
        default=40.0, ge=0, description="of cosine distance, in units of its 90th percentile in the picture"
    )
    reach: float | None = Field(
        default=None, gt=0, description="geodesic distance that still counts; null: 14 with features, else 10"
    )
    spatial: float = Field(default=0.4, gt=0, description="reach of contrast, in longer sides")
    smooth: float = Field(
        default=10.0, gt=0, description="distance over which neighbours are pulled together"
    )
    edge_radius: float = Field(default=0.01, ge=0, description="of the guided filter, in longer sides")
    contrast: float = Field(
        default=10.0, gt=0, description="steepness of the sigmoid around 0.5 that sets salient from not"
    )


def saliency_map(image: Pixels, features: Map | None = None, config: SaliencyConfig | None = None) -> Map:
    """Saliency of a photo, H×W×3 uint8 -> H×W float32 in 0..1, its own minimum 0 and maximum 1.

    features: K×h×w of any resolution, from a frozen network; None: colours alone.
    A photo without any contrast is salient nowhere.
    """
    config = config or SaliencyConfig()
    height, width = image.shape[:2]
    scale = min(1.0, config.side / max(height, width))
    small: Any = cv2.resize(
        image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    colours = lab(small)
    index = slic(colours, config.superpixels)
    count = int(index.max()) + 1
    distance = _distances(means(colours, index, count))
    reach = 10.0
    if features is not None:
        reach = 14.0
        far = _cosine_distances(_pooled(features, index, count))
        distance = config.colour_weight * distance + config.feature_weight * far
    found = robust_background(distance, index, config, config.reach or reach)
    rough: Any = cv2.resize(found[index].astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    fine = _to_edges(rough, image, round(config.edge_radius * max(height, width)))
    if not fine.any():
        return fine
    return stretched(1 / (1 + np.exp(config.contrast * (np.float32(0.5) - fine)))).astype(np.float32)


def robust_background(distance: Matrix, index: NDArray, config: SaliencyConfig, reach: float) -> Matrix:
    """Saliency of each superpixel, (n,) in 0..1. distance: n×n; index: superpixel of each pixel."""
    pairs = neighbours(index)
    if len(distance) < 3 or not distance.any():
        return np.zeros(len(distance))
    background = background_probability(distance, pairs, border(index), reach)
    y, x = np.mgrid[: index.shape[0], : index.shape[1]]
    places = means(np.dstack([y, x]).astype(np.float32), index, len(distance)) / max(index.shape)
    near = np.exp(-(_distances(places) ** 2) / (2 * config.spatial**2))
    foreground = stretched((distance * near) @ background)
    return stretched(_solve(distance, pairs, background, foreground, config.smooth))


def background_probability(distance: Matrix, pairs: NDArray, edge: NDArray, reach: float) -> Matrix:
    """From boundary connectivity: how much of a superpixel's geodesic neighbourhood lies on the border,
    relative to the square root of its area; (n,) in 0..1."""
    n = len(distance)
    around = [(i, j) for k, i in enumerate(edge) for j in edge[k + 1 :]]  # the outside joins the border
    links = np.unique(np.concatenate([pairs, np.array(around, np.int64).reshape(-1, 2)]), axis=0)
    steps = distance[links[:, 0], links[:, 1]]
    adjacent = np.full((n, n), np.inf)
    adjacent[pairs[:, 0], pairs[:, 1]] = distance[pairs[:, 0], pairs[:, 1]]
    least = np.minimum(adjacent, adjacent.T).min(1)  # what the most alike neighbours differ by is noise
    steps = np.maximum(steps - least.mean(), 0) + 1e-6  # 0 would be no edge
    graph = coo_array((steps, (links[:, 0], links[:, 1])), (n, n)).tocsr()
    close = np.exp(-(dijkstra(graph, directed=False) ** 2) / (2 * reach**2))
    connectivity = close[:, edge].sum(1) / np.sqrt(close.sum(1))
    return 1 - np.exp(-(connectivity**2) / 2)


def _solve(distance: Matrix, pairs: NDArray, background: Matrix, foreground: Matrix, smooth: float) -> Matrix:
    """The least-squares balance: background towards 0, foreground towards 1, alike neighbours equal."""
    n = len(distance)
    weights = np.zeros((n, n))
    between = distance[pairs[:, 0], pairs[:, 1]]
    weights[pairs[:, 0], pairs[:, 1]] = np.exp(-(between**2) / (2 * smooth**2)) + 0.1
    weights += weights.T
    laplacian = np.diag(weights.sum(1)) - weights
    return np.linalg.solve(laplacian + np.diag(background + foreground + 1e-6), foreground).astype(np.float64)


def stretched(values: NDArray) -> NDArray:
    """From 0 to 1; all 0 where they do not differ."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _distances(points: NDArray) -> Matrix:
    """n×K -> n×n Euclidean."""
    squares = (points.astype(np.float64) ** 2).sum(1)
    product = points.astype(np.float64) @ points.T.astype(np.float64)
    out = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * product, 0))
    np.fill_diagonal(out, 0)
    return out


def _cosine_distances(features: NDArray) -> Matrix:
    """n×K -> n×n, in units of the 90th percentile of the picture's own distances."""
    units = features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-9)
    out = np.maximum(1 - units @ units.T, 0).astype(np.float64)
    np.fill_diagonal(out, 0)
    usual = np.percentile(out, 90)
    return out / usual if usual > 1e-6 else out


def _pooled(features: Map, index: NDArray, count: int) -> NDArray:
    """Mean of K×h×w features over each superpixel, n×K."""
    height, width = index.shape
    planes = [cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR) for plane in features]
    return means(np.stack(planes, -1), index, count)


def _to_edges(values: Map, image: Pixels, radius: int, epsilon: float = 1e-3) -> Map:
    """Guided filter (He et al.) with the photo's grey values, 0..1 in and out."""
    if radius < 1:
        return stretched(values)
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / np.float32(255)
    side = (2 * radius + 1, 2 * radius + 1)

    def mean(x: NDArray) -> NDArray:
        return cv2.blur(x, side)

    mean_guide, mean_values = mean(guide), mean(values)
    slope = (mean(guide * values) - mean_guide * mean_values) / (
        mean(guide * guide) - mean_guide**2 + np.float32(epsilon)
    )
    offset = mean_values - slope * mean_guide
    return stretched(np.clip(mean(slope) * guide + mean(offset), 0, 1))


# -- files -----------------------------------------------------------------------------------------------------
def make_saliency(
    photos: Photos,
    out: Path,
    config: SaliencyConfig,
    *,
    weights: Path | None = None,
    arch: str = "mobilenetv2",
    workers: int = 0,
) -> JobSummary:
    """Saliency PNGs `out/<id>.png` of every photo that has none yet.

    weights: of an ImageNet classifier of `arch`, for its features; None: colours alone. workers: processes.
    Raises InputError or ExportError for the weights, InputError for a folder made with other settings.
    """
    writer = SaliencyWriter(photos, Path(out), config, weights, arch)
    writer.load()  # so that a wrong file is one error, not one for every photo
    found = None if weights is None else {"arch": arch, "sha256": sha256_file(weights)}
    save_config(Path(out), "saliency", config, {"weights": found})
    return run_job(
        "saliency", photos.ids, lambda i: saliency_file(Path(out), i), writer, Path(out), workers=workers
    )


class SaliencyWriter:
    """`id -> OUT/id.png`, for photo_job.run_job: loads the network in the process that first needs it."""

    def __init__(
        self,
        photos: Photos,
        out: Path,
        config: SaliencyConfig,
        weights: Path | None = None,
        arch: str = "mobilenetv2",
    ) -> None:
        self.photos, self.out, self.config = photos, out, config
        self.weights, self.arch = weights, arch
        self._network: Backbone | None = None

    def __call__(self, item_id: str) -> None:
        image = self.photos.image(item_id)
        features = None if self.weights is None else self._features(image)
        write_saliency(saliency_file(self.out, item_id), saliency_map(image, features, self.config))

    def load(self) -> None:
        """Load the network; raises InputError or ExportError for weights that cannot be used."""
        if self.weights is not None and self._network is None:
            from infercam.trainer.networks.backbones import load_backbone

            self._network = load_backbone(self.arch, self.weights, output_stride=16).eval()

    def _features(self, image: Pixels) -> Map:
        """The level of stride 16 below the last: textures and parts, not yet classes."""
        import torch

        from infercam.trainer.photos.augment import resize, to_tensor
        from infercam.trainer.photos.whole_images import shape_at

        self.load()
        assert self._network is not None
        small, _ = resize(image, {}, *shape_at(image.shape[:2], self.config.feature_side))
        with torch.inference_mode():
            return self._network(to_tensor(small, self._network.input)[None])["c4"][0].numpy()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None}
