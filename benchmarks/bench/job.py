"""A unit of measurement: what one worker process is told to do, and what it says of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infercam.engine.common.errors import InfercamError
from infercam.engine.method.recipe import Mode

Kind = Literal["engine", "loop", "grad-cam", "torch-cam", "profile"]
Network = Literal["torch", "onnx"]
VERSION = 2
"""Of how measurements are taken: a change here measures everything anew."""


NO_MODEL = "needs the classifier as PyTorch loads it: give --model FILE (and --arch)"


class NotMeasured(InfercamError):
    """A contestant that cannot run here; the text is the reason that its row shows."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BenchSwitches(_Model):
    """The engine's savings that can be taken away one by one."""

    images_in_flight: int | None = Field(default=None, description="None: what the backend asks for")
    batch_views: int | None = Field(default=None, description="views in one batch; None: the backend's own")
    overlap: bool = Field(default=True, description="reading and writing beside the inference")


class BenchJob(_Model):
    """One contestant over the first `count` pictures of a list; everything that can change its time."""

    kind: Kind
    bundle: Path
    pictures: Path = Field(description="pictures.json, see pictures.py")
    digest: str = Field(description="of that list")
    count: int = Field(ge=1)
    recipe: str = "released"
    changes: dict[str, Any] = Field(default={}, description="constants of the recipe that differ")
    mode: Mode = "both"
    backend: str = "auto"
    precision: str | None = None
    threads: int | None = None
    switches: BenchSwitches = BenchSwitches()
    views: Literal[1, 8] = Field(default=8, description="of the libraries' plain CAM")
    network: Network = Field(
        default="torch", description="what the loop calls: the module, or the exported graph"
    )
    autocast: bool = Field(default=False, description="the loop's and the libraries' network in bf16")
    model: Path | None = Field(default=None, description="the classifier, as PyTorch loads it")
    arch: str = "mobilenetv2"
    format: Literal["npz", "psa"] = Field(default="npz", description="of the engine's maps")

    def key(self, bundle_hash: str) -> str:
        """Names this measurement among all others, wherever bundle, pictures and model lie."""
        what = self.model_dump_json(exclude={"bundle", "pictures", "model"})
        model = f"{self.model.name} {self.model.stat().st_size}" if self.model else ""
        return hashlib.sha256(f"{VERSION} {bundle_hash} {model} {what}".encode()).hexdigest()[:16]


class Measured(_Model):
    """What a worker found. The clock runs from the first picture's reading to the last map's writing; one picture was
    done before, so that neither start-up nor a first call's allocations are in it."""

    images: int = Field(description="done while the clock ran: those of the list, passes times")
    passes: int = Field(default=1, description="a list that is done too soon to be timed is done again")
    seconds: float
    cpu_seconds: float = Field(description="of all threads of the process, while the clock ran")
    began: float = Field(description="on the system's monotonic clock, seconds")
    ended: float
    network_pixels: int = 0
    shapes: dict[str, int] = Field(default={}, description="views inferred by network height x width")
    backend: str | None = None
    details: dict[str, Any] = {}
    peak_mb: float = Field(
        default=0.0, description="resident memory of the process and its children, at most"
    )
    gpu_busy: float | None = Field(
        default=None, description="0..1, mean while the clock ran; None: no GPU seen"
    )
    gpu_mb: float | None = Field(default=None, description="memory in use on the GPU, at most")

    @property
    def seconds_per_image(self) -> float:
        return self.seconds / self.images

    @property
    def seconds_per_list(self) -> float:
        return self.seconds / self.passes

    @property
    def cores(self) -> float:
        """Cores kept busy, on average."""
        return self.cpu_seconds / self.seconds if self.seconds > 0 else 0.0


class BenchOutcome(_Model):
    """What a worker leaves in its file: measured, or why not."""

    measured: Measured | None = None
    reason: str | None = None
