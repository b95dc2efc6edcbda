"""What a training stage tells the loop of fit.py: its network, its data, its loss, how it is judged."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from infercam.trainer.loop.config import StageConfig
from infercam.trainer.loop.dataset import StageDataset


class Stage(Protocol):
    """One thing to train. `fit` replaces `network` with its wrapped form (device, precision, processes); call
    it as a module (`self.network(x)`) in `loss`, or gradients are not shared between processes."""

    name: str
    """Of the stage; kept in its checkpoints, which others refuse."""
    network: nn.Module
    dataset: StageDataset
    best_by: str
    """The key of `validate` that is better when larger; "": the last epoch is the best."""
    freeze_batchnorm: bool
    """Keep BatchNorm's statistics and parameters as they were loaded (usual for fine-tuning)."""

    @property
    def config(self) -> StageConfig:
        """Its settings."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """`params`, and optionally `scale` (of the rate) and `weight_decay`."""
        ...

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`loss` and the parts worth showing, scalars; runs under autocast."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures after an epoch, in evaluation mode without gradients; may be empty. Every process runs it."""
        ...

    def before_epoch(self, epoch: int) -> None:
        """Anything to refresh before an epoch (0-based) starts or resumes."""
        ...

    def facts(self) -> dict[str, Any]:
        """What a checkpoint must say so that the network can be built again (JSON-able)."""
        ...


class StageBase:
    """Defaults of `Stage`."""

    best_by = ""
    freeze_batchnorm = True
    network: nn.Module

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [p for p in self.network.parameters() if p.requires_grad]}]

    def validate(self) -> dict[str, float]:
        return {}

    def before_epoch(self, epoch: int) -> None:
        """Nothing."""

    def facts(self) -> dict[str, Any]:
        return {}
