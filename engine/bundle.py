"""The bundle: a folder with a manifest, the contract between `export` (writes) and `engine` (reads).

    BUNDLE/
      manifest.json     what this module describes; validated and hash-checked when read
      response.onnx     the fp32 response graph: image -> scores (N,C), response (N,C,h,w)
      response.*.onnx   optional: other precisions (fp16, int8, …), in `graphs` and `precisions`
      plans/*.plan      optional: TensorRT plans, listed in `plans`

`response` is taken before ReLU and without the bias of the linear layer (which is recorded in the
manifest): for every image, mean over h,w of `response` plus `bias` equals `scores` (engine/method/README.md §1). With
`per_image_bias` the bias depends on the image: it is the graph's output `bias` (N,C), and the manifest's is zeros.
With `decomposition: none` this does not hold: `method` names the customary map, and the scores are the graph's alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infercam.engine.common.errors import BundleError
from infercam.engine.common.paths import regular_bytes
from infercam.engine.common.validation import first_problem
from infercam.engine.onnx_files import check_external

SCHEMA_VERSION = 3
"""2: the input's smallest size and multiple, per_image_bias. 3: cells, decomposition, method, affinity, runtimes.
What an earlier one lacks has defaults."""
MANIFEST = "manifest.json"
BIAS_OUTPUT = "bias"
"""The graph's output with the bias of each image, where `per_image_bias` says that there is one."""
AFFINITY_OUTPUT = "affinity"
"""The graph's output (N,P,P) of how much the P = h·w patches attend to each other, where `affinity` counts blocks."""
MANIFEST_BYTES = 64 << 20  # far more than any; a manifest is read whole

Triple = tuple[float, float, float]
Decomposition = Literal["mean", "none"]
Method = Literal["cam", "patch-tokens", "patch-tokens-attention", "maskclip", "attention-pool", "recipro"]
"""How the response was made (export/README.md); all but `cam` are customary, not exact."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputSpec(_Strict):
    """How a picture becomes the network's input: `(pixel * scale - mean) / std`, per channel."""

    name: str = "image"
    layout: Literal["NCHW"] = "NCHW"
    colour: Literal["RGB", "BGR"] = "RGB"
    scale: float = Field(default=1 / 255, gt=0, description="multiplies the 0..255 pixel first")
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)
    dynamic_batch: bool = True
    height: int | None = Field(default=None, gt=0, description="None: any height")
    width: int | None = Field(default=None, gt=0, description="None: any width")
    smallest: int = Field(default=1, gt=0, description="least side in pixels, where any size is taken")
    multiple: int = Field(default=1, gt=0, description="sides are multiples of it, where any size is taken")

    @model_validator(mode="after")
    def _check(self) -> InputSpec:
        if any(s <= 0 for s in self.std):
            raise ValueError("std must be positive")
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width are both fixed or both free")
        if self.smallest % self.multiple:
            raise ValueError("the smallest side is no multiple of `multiple`")
        return self

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width), where the network takes only one."""
        return (self.height, self.width) if self.height and self.width else None


class FileEntry(_Strict):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: int = Field(ge=0)


class Verification(_Strict):
    """What the export checked before it wrote the bundle (differences relative to the larger magnitude)."""

    inputs: list[str] = Field(description="one line per input tried, for example 'random 2x3x97x131'")
    tolerance: float
    max_score_error: float | None = Field(
        description="mean of the response + bias against the scores; None without a decomposition"
    )
    max_source_error: float = Field(description="the response graph's scores against the source's")


class ResponseCells(_Strict):
    """How large the response is, as the export found and checked it: a height of h pixels gives
    h // stride + rows[h % stride // step] cells, a width the same by `columns`, of any that the input takes."""

    step: int = Field(gt=0, description="sides leave multiples of it when divided by the stride")
    rows: list[Annotated[int, Field(ge=-64, le=64)]]
    columns: list[Annotated[int, Field(ge=-64, le=64)]]
    checked: int = Field(gt=0, description="sizes at which the graph was run and agreed")

    def size(self, height: int, width: int, stride: int) -> tuple[int, int]:
        """Rows and columns of the response to one view."""
        sides = ((height, self.rows), (width, self.columns))
        down, across = (side // stride + table[side % stride // self.step] for side, table in sides)
        return down, across


class PrecisionReport(_Strict):
    """What the export found when it made a graph of another precision: how far its maps are from fp32's."""

    created: str = Field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))
    input_type: Literal["float32", "float16"] = "float32"
    rest: str = Field(description="precision of the layers that are not quantised, the response layer apart")
    quantised: int = Field(default=0, description="layers in 8 bits")
    kept: list[str] = Field(default=[], description="nodes left in fp32 (or not quantised), each with why")
    settings: dict[str, Any] = Field(default={}, description="calibration: images, rules")
    checked: str = Field(description="on what, and whether the type was emulated")
    response_error: float = Field(description="largest difference relative to the largest response, mean")
    map_iou: float | None = Field(description="of the maps above 0.3, mean; None where all are empty")
    worst_map_iou: float | None
    max_error: float = Field(description="tolerance of response_error")
    min_iou: float = Field(description="tolerance of map_iou")
    notes: list[str] = []


class RuntimeReport(_Strict):
    """What a CPU runtime's own arithmetic, which is in no graph, does to the maps, and what it saves.

    Written by `infercam precision --runtime` where it is within its tolerance; `auto` takes what is recorded here and
    no other. It goes with the bundle, so that all machines that share a run decide alike.
    """

    created: str = Field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))
    runtime: Literal["openvino"]
    precision: str
    version: str = Field(description="of the runtime; another one is to be tried again")
    cpu: str = Field(description="where it was tried")
    kept: int = Field(default=0, ge=0, description="bf16: layers from the picture on that stay in fp32")
    checked: str = Field(description="on what")
    response_error: float = Field(description="largest difference relative to the largest response, mean")
    map_iou: float | None = Field(description="of the maps above 0.3, mean; None where all are empty")
    worst_map_iou: float | None
    max_error: float = Field(description="tolerance of response_error")
    min_iou: float = Field(description="tolerance of map_iou")
    speed: float = Field(gt=0, description="CPU seconds of ONNX Runtime in fp32, over its own, one thread")


class Manifest(_Strict):
    schema_version: int = SCHEMA_VERSION
    name: str
    created: str = Field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))
    classes: list[str] = Field(min_length=1)
    multi_label: bool = Field(default=True, description="scores pass through a sigmoid (else a softmax)")
    stride: int = Field(gt=0, description="input pixels per response cell")
    input: InputSpec = Field(default_factory=InputSpec)
    scores: str = "scores"
    response: str = "response"
    bias: list[float] = Field(description="the linear layer's bias, one per class; zeros if it has none")
    per_image_bias: bool = Field(default=False, description="the graph's output `bias` counts, not this one")
    decomposition: Decomposition = Field(
        default="mean",
        description="'none': mean(response) + bias is not the scores, which are the graph's alone",
    )
    method: Method = Field(default="cam", description="how the response was made")
    affinity: int | None = Field(
        default=None,
        gt=0,
        description="blocks whose self-attention is averaged in the graph's output `affinity`",
    )
    graphs: dict[str, str] = Field(description="precision -> file, always with 'fp32'")
    precisions: dict[str, PrecisionReport] = Field(default={}, description="of the graphs but fp32")
    runtimes: list[RuntimeReport] = []
    plans: list[dict[str, Any]] = []
    files: dict[str, FileEntry] = Field(description="every file of the bundle but the manifest")
    source: dict[str, Any] = Field(default_factory=dict, description="where the classifier came from")
    tools: dict[str, str] = Field(default_factory=dict, description="versions of what made the bundle")
    verification: Verification | None = None
    cells: ResponseCells | None = Field(default=None, description="None: the runtime is asked, by a run")

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("class names repeat")
        if len(self.bias) != len(self.classes):
            raise ValueError(f"{len(self.bias)} biases for {len(self.classes)} classes")
        if self.per_image_bias and any(self.bias):
            raise ValueError("the bias depends on the image, and is no list of zeros")
        if (self.method == "cam") != (self.decomposition == "mean"):
            raise ValueError(f"method '{self.method}' does not go with decomposition '{self.decomposition}'")
        if self.per_image_bias and self.decomposition == "none":
            raise ValueError("a bias for each image needs a decomposition")
        if "fp32" not in self.graphs:
            raise ValueError("graphs has no 'fp32'")
        for name in [*self.files, *self.graphs.values()]:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"file name {name!r} leaves the bundle")
        if self.cells is not None:
            self._check_cells(self.cells)
        missing = [f for f in self.graphs.values() if f not in self.files]
        if missing:
            raise ValueError(f"graphs not listed in files: {', '.join(missing)}")
        return self

    def _check_cells(self, cells: ResponseCells) -> None:
        if self.stride % cells.step:
            raise ValueError(f"cells: the step {cells.step} does not divide the stride {self.stride}")
        count = self.stride // cells.step
        if (len(cells.rows), len(cells.columns)) != (count, count):
            raise ValueError(
                f"cells: {len(cells.rows)} rows and {len(cells.columns)} columns, not {count} each"
            )
        least = self.input.fixed_size or (self.input.smallest, self.input.smallest)
        if min(cells.size(*least, self.stride)) < 1:
            raise ValueError(f"cells: no response at {least[0]}x{least[1]} pixels")

    @property
    def scores_are_means(self) -> bool:
        """Whether mean(response) + `bias` is the scores, with the manifest's own bias."""
        return self.decomposition == "mean" and not self.per_image_bias

    def class_index(self, label: str | int) -> int:
        """Index of a class given by name or index; raises KeyError if it is neither."""
        if isinstance(label, int) and not isinstance(label, bool):
            if 0 <= label < len(self.classes):
                return label
            raise KeyError(label)
        return {name: i for i, name in enumerate(self.classes)}[str(label)]


class Bundle:
    """A bundle on disk whose manifest and file hashes have been checked."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and check a bundle.

        Raises BundleError, naming the file, where the manifest is missing, malformed or of a newer schema,
        where a listed file is missing or does not have the recorded SHA-256, or where a graph keeps weights
        in a file that is not listed.
        """
        root = Path(path)
        manifest = read_manifest(root)
        for name, entry in manifest.files.items():
            file = root / name
            if not file.resolve().is_relative_to(root.resolve()):
                raise BundleError(f"{file}: leaves the bundle folder; refuse to read it")
            if not file.is_file():
                raise BundleError(f"{file}: listed in the manifest but missing; export the bundle again")
            if file.stat().st_size != entry.size or sha256_file(file) != entry.sha256:
                raise BundleError(f"{file}: changed since export (SHA-256 differs); export the bundle again")
        for graph in dict.fromkeys(manifest.graphs.values()):
            check_external(root, graph, manifest.files)
        return cls(root, manifest)

    def graph(self, precision: str = "fp32") -> Path:
        """Path of the response graph in that precision; raises BundleError if the bundle has none."""
        try:
            return self.path / self.manifest.graphs[precision]
        except KeyError:
            have = ", ".join(sorted(self.manifest.graphs))
            raise BundleError(f"{self.path}: no {precision} graph (has: {have})") from None

    @property
    def hash(self) -> str:
        """Identity of what decides the maps: SHA-256 over classes, preprocessing and the fp32 graph."""
        m = self.manifest
        key = {
            "classes": m.classes,
            "input": m.input.model_dump(),
            "bias": m.bias,
            "response": m.files[m.graphs["fp32"]].sha256,
        }
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def read_manifest(root: Path) -> Manifest:
    """Parse and validate `root/manifest.json` without touching the other files; raises BundleError."""
    file = root / MANIFEST
    try:
        raw = json.loads(regular_bytes(file, MANIFEST_BYTES))
    except FileNotFoundError:
        raise BundleError(f"{root}: no {MANIFEST}; not a bundle (make one with: infercam export)") from None
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(f"{file}: cannot be read: {e}") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise BundleError(f"{file}: has no schema_version; not a bundle manifest")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{file}: schema {version} is newer than this infercam reads ({SCHEMA_VERSION}); upgrade infercam"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as e:
        raise BundleError(f"{file}: {first_problem(e, 'manifest')}") from None


def file_entry(file: Path) -> FileEntry:
    """The manifest's entry for a file as it is now."""
    return FileEntry(sha256=sha256_file(file), size=file.stat().st_size)


def sha256_file(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
