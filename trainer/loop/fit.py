"""The training loop of every stage, on Lightning Fabric: SGD with the poly schedule, mixed precision, several
devices (under torchrun), checkpoints that a kill cannot damage, exact resuming.

A run folder holds config.json (config.py), last.ckpt (everything needed to go on), best.ckpt (the network as
others read it) and history.jsonl (one line an epoch).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import InputError, MissingExtra
from infercam.engine.common.memory import keep_freed_memory
from infercam.engine.common.progress import JobProgress
from infercam.engine.common.signals import caught_signals
from infercam.trainer.loop.checkpoint import load_network, read_checkpoint_file, save_checkpoint
from infercam.trainer.loop.config import StageConfig
from infercam.trainer.loop.dataset import EpochSampler, collate, raise_if_broken, to_device
from infercam.trainer.loop.errors import TrainingError
from infercam.trainer.loop.schedule import apply_rate, poly
from infercam.trainer.loop.stage import Stage

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LAST, BEST, HISTORY = "last.ckpt", "best.ckpt", "history.jsonl"


@dataclass
class FitResult:
    """What a finished run reports."""

    epochs: int
    best: dict[str, float]
    """Figures of the best epoch (`epoch` among them)."""
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    """Of this process; a resumed run does not count what came before."""


@dataclass
class _Position:
    """How far a run has come."""

    epoch: int = 0
    step: int = 0
    """Steps done within the epoch."""
    best: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    """Of the losses, over this epoch's steps so far."""


def fit(stage: Stage, out: Path) -> FitResult:
    """Train a stage to the end of its epochs, going on from `out/last.ckpt` where there is one.

    Raises TrainingError for a loss that is not finite (naming epoch, step and images; the last checkpoint is
    kept) or a checkpoint that cannot be written; InputError for data that cannot be read, or an accelerator
    that is not here. SIGTERM or SIGINT: saves and leaves with exit code 128 + signal.
    """
    return _Fit(stage, Path(out))()


def make_fabric(config: StageConfig) -> Fabric:
    """Fabric for these settings; under torchrun it joins the group that torchrun started."""
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise MissingExtra("lightning-fabric", "train", "training") from None
    cuda = torch.cuda.is_available()
    if config.accelerator == "cuda" and not cuda:
        raise InputError("accelerator cuda: PyTorch sees no CUDA device here; use --accelerator cpu or auto")
    accelerator = "cuda" if cuda and config.accelerator != "cpu" else "cpu"
    precision = config.precision
    if precision == "auto":
        precision = "16-mixed" if accelerator == "cuda" else "32"
    if precision == "16-mixed" and accelerator == "cpu":
        raise InputError("precision 16-mixed needs a CUDA device; use bf16-mixed or 32 on the CPU")
    devices, nodes = config.devices, 1
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    if config.threads:
        torch.set_num_threads(config.threads)
    if accelerator == "cpu":
        keep_freed_memory()
    many = devices * nodes > 1
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        precision="32-true" if precision == "32" else precision,
        strategy="ddp" if many else "auto",
    )
    fabric.launch()
    return fabric


class _Fit:
    def __init__(self, stage: Stage, out: Path) -> None:
        self.stage, self.out, self.config = stage, out, stage.config
        torch.manual_seed(self.config.seed)
        self.fabric = make_fabric(self.config)
        self.rank0 = self.fabric.global_rank == 0
        self.sampler = EpochSampler(
            len(stage.dataset),
            self.config.batch,
            self.config.seed,
            self.fabric.global_rank,
            self.fabric.world_size,
        )
        self.total = self.config.epochs * self.sampler.steps
        self.at = _Position()
        self.saved = time.monotonic()

    def __call__(self) -> FitResult:
        if not len(self.stage.dataset):
            raise InputError(f"{self.stage.name}: no images to train on")
        started = time.monotonic()
        self._set_up()
        loader = self._loader()
        with caught_signals() as caught, JobProgress(self.stage.name, self._planned(), self.rank0) as bar:
            bar.skip((self.at.epoch * self.sampler.steps + self.at.step) * self._images_a_step())
            while self.at.epoch < self.config.epochs:
                self._epoch(loader, bar, caught)
        return FitResult(self.at.epoch, self.at.best, self.at.history, round(time.monotonic() - started, 1))

    def _planned(self) -> int:
        return self.total * self._images_a_step()

    def _images_a_step(self) -> int:
        return self.sampler.batch * self.fabric.world_size

    # -- setting up ----------------------------------------------------------------------------------------
    def _set_up(self) -> None:
        stage, config = self.stage, self.config
        resumed = (self.out / LAST).exists()
        raw = read_checkpoint_file(self.out / LAST, stage.name) if resumed else None
        if raw is not None:
            load_network(stage.network, raw["network"], self.out / LAST)
        if stage.freeze_batchnorm:
            freeze_batchnorm(stage.network)
        if self.fabric.device.type == "cpu":  # oneDNN's own layout: a fifth less time, the same sums
            nn.utils.convert_conv2d_weight_memory_format(stage.network, torch.channels_last)
        groups = [
            {"scale": 1.0, "weight_decay": config.weight_decay, **group} for group in stage.parameter_groups()
        ]
        optimiser = torch.optim.SGD(groups, lr=config.rate, momentum=config.momentum)
        stage.network, self.optimiser = self.fabric.setup(stage.network, optimiser)
        if raw is not None:
            self._resume(raw)

    def _resume(self, raw: dict[str, Any]) -> None:
        position = json.loads(raw["position"])
        if position.pop("steps") != self.sampler.steps:
            raise InputError(
                f"{self.out}: was begun with another number of images, batch or devices; delete it to start over"
            )
        self.optimiser.load_state_dict(raw["optimiser"])
        self.at = _Position(**position)

    def _loader(self) -> DataLoader:
        workers = self.config.workers
        if workers is None:  # beside a GPU the pictures are the bottleneck; on the CPU the network is
            workers = min(8, max(1, available_cores() - 1)) if self.fabric.device.type == "cuda" else 0
        return DataLoader(
            self.stage.dataset,
            batch_size=self.sampler.batch,
            sampler=self.sampler,
            num_workers=workers,
            collate_fn=collate,
            # a fork of a process with threads may hang
            multiprocessing_context="spawn" if workers else None,
            pin_memory=self.fabric.device.type == "cuda",
        )

    # -- training ------------------------------------------------------------------------------------------
    def _epoch(self, loader: DataLoader, bar: JobProgress, caught: list[int]) -> None:
        at, steps = self.at, self.sampler.steps
        self.stage.before_epoch(at.epoch)
        self._train_mode()
        self.sampler.epoch, self.sampler.start = at.epoch, at.step * self.sampler.batch
        for batch in loader if at.step < steps else ():
            raise_if_broken(batch)
            losses = self._step(to_device(batch, self.fabric.device))
            at.step += 1
            for name, value in losses.items():
                at.sums[name] = at.sums.get(name, 0.0) + value
            bar.advance(self._images_a_step(), f"epoch {at.epoch + 1}/{self.config.epochs}", losses)
            if caught:
                self._save()
                bar.close()
                bar.say(f"stopped in epoch {at.epoch + 1}; run the same command again to go on")
                raise SystemExit(128 + caught[0])
            if time.monotonic() - self.saved > 60 * self.config.save_minutes:
                self._save()
        self._finish_epoch(bar)

    def _train_mode(self) -> None:
        self.stage.network.train()
        if self.stage.freeze_batchnorm:
            freeze_batchnorm(self.stage.network)

    def _step(self, batch: dict[str, Any]) -> dict[str, float]:
        config = self.config
        step = self.at.epoch * self.sampler.steps + self.at.step
        apply_rate(
            self.optimiser.param_groups, config.rate * poly(step, self.total, config.power, config.warmup)
        )
        # Dropout as a function of the step, so that a resumed run draws what an undisturbed one would.
        torch.manual_seed(
            (config.seed * self.total + step) * self.fabric.world_size + self.fabric.global_rank
        )
        with self.fabric.autocast():
            losses = self.stage.loss(batch)
        values = {name: float(value.detach()) for name, value in losses.items()}
        if not all(map(_finite, values.values())):
            raise TrainingError(
                f"{self.stage.name}: the loss is not finite at epoch {self.at.epoch + 1}, step {self.at.step + 1} "
                f"({', '.join(f'{k} {v:g}' for k, v in values.items())}; images {', '.join(batch['id'])}); "
                f"{self._kept()}: lower the rate (now {config.rate:g}) or look at those images"
            )
        self.optimiser.zero_grad()
        self.fabric.backward(losses["loss"])
        if config.clip:
            self.fabric.clip_gradients(
                self.stage.network, self.optimiser, max_norm=config.clip, error_if_nonfinite=False
            )
        self.optimiser.step()
        return values

    def _kept(self) -> str:
        file = self.out / LAST
        return f"the last good checkpoint is {file}" if file.exists() else "no checkpoint was written yet"

    def _finish_epoch(self, bar: JobProgress) -> None:
        at, stage = self.at, self.stage
        figures = {name: total / max(1, at.step) for name, total in at.sums.items()}
        stage.network.eval()
        with torch.no_grad():
            figures |= stage.validate()
        at.epoch, at.step, at.sums = at.epoch + 1, 0, {}
        row = {"epoch": float(at.epoch), **{k: round(float(v), 6) for k, v in figures.items()}}
        at.history.append(row)
        better = not stage.best_by or row[stage.best_by] > at.best.get(stage.best_by, -float("inf"))
        if better:
            at.best = row
            if self.rank0:
                save_checkpoint(
                    self.out / BEST, stage.name, _state(stage.network), stage.facts(), epoch=at.epoch
                )
        self._save()
        bar.say(_line(stage.name, row, self.config.epochs))

    # -- saving --------------------------------------------------------------------------------------------
    def _save(self) -> None:
        """last.ckpt and history.jsonl, from the first process only; the others wait."""
        if self.rank0:
            at = self.at
            position = {
                "steps": self.sampler.steps,
                "epoch": at.epoch,
                "step": at.step,
                "best": at.best,
                "history": at.history,
                "sums": at.sums,
            }
            save_checkpoint(
                self.out / LAST,
                self.stage.name,
                _state(self.stage.network),
                self.stage.facts(),
                optimiser=self.optimiser.state_dict(),
                position=json.dumps(position),
            )
            with atomic_write(self.out / HISTORY, "w") as f:
                f.writelines(json.dumps(row) + "\n" for row in at.history)
        self.fabric.barrier()
        self.saved = time.monotonic()


def freeze_batchnorm(network: nn.Module) -> None:
    """BatchNorm layers as they are: running statistics fixed, no gradients."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)


def _state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict under the network's own names, whatever Fabric and DDP wrapped around it."""
    inner = getattr(network, "module", network)  # Fabric's wrapper forwards `module` to what it was given
    return dict(inner.state_dict())


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def _line(name: str, row: dict[str, float], epochs: int) -> str:
    rest = ", ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "epoch")
    return f"{name}: epoch {int(row['epoch'])}/{epochs}: {rest}"
