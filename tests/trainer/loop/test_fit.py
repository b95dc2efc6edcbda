"""The training loop: exact resuming, what stops it, what it leaves behind."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from infercam.engine.common.errors import InputError
from infercam.trainer.loop.checkpoint import load_checkpoint, save_checkpoint
from infercam.trainer.loop.config import StageConfig, make_config, save_config
from infercam.trainer.loop.dataset import EpochSampler, StageDataset
from infercam.trainer.loop.errors import TrainingError
from infercam.trainer.loop.fit import fit
from infercam.trainer.loop.schedule import poly
from infercam.trainer.loop.stage import StageBase
from tests.shared import ROOT


def load(id: str) -> tuple[np.ndarray, dict]:
    """A picture whose mean says what its target is."""
    if id == "broken":
        raise InputError("broken.jpg: not an image")
    rng = np.random.default_rng(int(id))
    return rng.integers(0, 255, (6, 6, 3), dtype=np.uint8), {}


def augment(rng: np.random.Generator, image: np.ndarray, _: dict) -> dict[str, torch.Tensor]:
    x = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)
    return {"image": x + float(rng.normal(0, 0.01)), "target": x.mean((1, 2))}


class Toy(StageBase):
    """Learns the channel means; `explode` makes the loss infinite at that call."""

    name = "toy"
    freeze_batchnorm = False
    best_by = "score"

    def __init__(self, ids: list[str], *, stop_at: int = 0, explode: int = 0, **changes: object) -> None:
        self.config = StageConfig(epochs=3, batch=4, rate=0.05, workers=0, accelerator="cpu", **changes)
        torch.manual_seed(7)
        self.network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.2), nn.Conv2d(4, 3, 1)
        )
        self.dataset = StageDataset(ids, load, augment, self.config.seed)
        self.calls, self.explode, self.stop_at = 0, explode, stop_at
        self.seen: list[list[str]] = []

    def loss(self, batch: dict) -> dict[str, torch.Tensor]:
        self.calls += 1
        self.seen.append(batch["id"])
        if self.calls == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        loss = ((self.network(batch["image"]).mean((2, 3)) - batch["target"]) ** 2).mean()
        return {"loss": loss * float("inf") if self.calls == self.explode else loss}

    def validate(self) -> dict[str, float]:
        return {"score": -float(self.network(torch.ones(1, 3, 6, 6)).abs().sum())}

    def facts(self) -> dict:
        return {"kind": "toy"}


IDS = [str(i) for i in range(14)]


def weights(file: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(file, "toy")[0]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_lowers_the_loss_and_keeps_the_best(tmp_path: Path) -> None:
    result = fit(Toy(IDS, seed=1), tmp_path)
    losses = [row["loss"] for row in result.history]
    assert len(losses) == 3 and losses[-1] < 0.7 * losses[0]
    scores = [row["score"] for row in result.history]
    assert result.best["score"] == max(scores)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == result.history
    assert load_checkpoint(tmp_path / "best.ckpt", "toy")[1] == {"kind": "toy"}


@pytest.mark.parametrize("stop_at", [1, 3, 4, 9])  # 3: an epoch's last step; 9: the very last
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    whole = Toy(IDS)
    fit(whole, tmp_path / "whole")
    first = Toy(IDS, stop_at=stop_at)
    with pytest.raises(SystemExit) as left:
        fit(first, tmp_path / "parts")
    assert left.value.code == 128 + signal.SIGTERM
    second = Toy(IDS)
    fit(second, tmp_path / "parts")
    assert first.seen + second.seen == whole.seen
    assert equal(weights(tmp_path / "parts/last.ckpt"), weights(tmp_path / "whole/last.ckpt"))
    assert equal(weights(tmp_path / "parts/best.ckpt"), weights(tmp_path / "whole/best.ckpt"))
    assert (tmp_path / "parts/history.jsonl").read_text() == (tmp_path / "whole/history.jsonl").read_text()


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    fit(Toy(IDS), tmp_path)
    before = (tmp_path / "last.ckpt").read_bytes()
    again = Toy(IDS)
    assert fit(again, tmp_path).epochs == 3
    assert again.calls == 0 and (tmp_path / "last.ckpt").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    fit(Toy(IDS, stop_at=0), tmp_path / "good")
    stage = Toy(IDS, explode=5)  # the second step of the second epoch
    with pytest.raises(TrainingError, match=r"epoch 2, step 2 .*images (\d+, )+\d+\).*last good checkpoint"):
        fit(stage, tmp_path / "bad")
    state = torch.load(tmp_path / "bad/last.ckpt", weights_only=True)
    assert json.loads(state["position"])["epoch"] == 1
    assert all(bool(torch.isfinite(v).all()) for v in state["network"].values())
    fit(Toy(IDS), tmp_path / "bad")  # and goes on from there
    assert equal(weights(tmp_path / "bad/last.ckpt"), weights(tmp_path / "good/last.ckpt"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_line(tmp_path: Path, workers: int) -> None:
    stage = Toy([*IDS[:3], "broken"], seed=2)
    stage.config = stage.config.model_copy(update={"workers": workers})
    with pytest.raises(InputError) as error:
        fit(stage, tmp_path)
    assert str(error.value) == "broken.jpg: not an image"


def test_frozen_batchnorm_stays_as_it_was_loaded(tmp_path: Path) -> None:
    stage = Toy(IDS)
    stage.freeze_batchnorm = True
    fit(stage, tmp_path)
    after = weights(tmp_path / "last.ckpt")
    assert bool((after["1.running_mean"] == 0).all()) and bool((after["1.weight"] == 1).all())


def test_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fit(Toy(IDS, stop_at=4), tmp_path)
    with pytest.raises(InputError, match="another number of images"):
        fit(Toy(IDS[:5]), tmp_path)


def test_a_checkpoint_of_another_architecture_names_the_keys(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fit(Toy(IDS, stop_at=4), tmp_path)
    other = Toy(IDS)
    other.network = nn.Sequential(nn.Conv2d(3, 3, 3))
    with pytest.raises(InputError, match=r"misses|other shapes|unknown"):
        fit(other, tmp_path)


def test_damaged_and_foreign_checkpoints_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(file, "toy")
    save_checkpoint(file, "other", {}, {})
    with pytest.raises(InputError, match="of the stage 'other', not 'toy'"):
        load_checkpoint(file, "toy")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(file, "toy")
    torch.save({"format": 1, "network": print}, file)  # a pickle that holds a function
    with pytest.raises(InputError, match="not unpickled"):
        load_checkpoint(file, "toy")


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.ckpt"
    save_checkpoint(file, "toy", {"a": torch.ones(2)}, {})
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        save_checkpoint(file, "toy", {"a": torch.zeros(2)}, {})
    assert file.read_bytes() == before and sorted(tmp_path.iterdir()) == [file]


def test_settings_come_from_a_file_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("rate = 0.5\nepochs = 2\n")
    config = make_config(StageConfig, file, epochs=9, batch=None)
    assert (config.rate, config.epochs, config.batch) == (0.5, 9, 8)
    with pytest.raises(InputError, match="rates: Extra inputs"):
        make_config(StageConfig, None, rates=3)
    with pytest.raises(InputError, match=r"a\.toml: rate: "):
        file.write_text("rate = -1")
        make_config(StageConfig, file)
    with pytest.raises(InputError, match="cannot be read as settings"):
        file.write_text("rate = = 3")
        make_config(StageConfig, file)


def test_a_folder_made_with_other_settings_is_refused(tmp_path: Path) -> None:
    save_config(tmp_path, "toy", StageConfig(), {"images": 3})
    save_config(
        tmp_path, "toy", StageConfig(workers=3, threads=1), {"images": 3}
    )  # the machine's, not the run's
    with pytest.raises(InputError, match=r"rate = 0\.1, not 0\.2"):
        save_config(tmp_path, "toy", StageConfig(rate=0.2), {"images": 3})
    with pytest.raises(InputError, match="images = 3, not 4"):
        save_config(tmp_path, "toy", StageConfig(), {"images": 4})
    with pytest.raises(InputError, match="holds the stage 'toy'"):
        save_config(tmp_path, "other", StageConfig(), {"images": 3})


@pytest.mark.parametrize(
    ("count", "batch", "world"), [(14, 4, 1), (14, 4, 2), (3, 8, 1), (3, 8, 4), (1, 1, 2)]
)
def test_every_process_gets_its_share_of_the_same_order(count: int, batch: int, world: int) -> None:
    shares = [EpochSampler(count, batch, 5, rank, world) for rank in range(world)]
    assert len({(s.batch, s.steps) for s in shares}) == 1
    first = [[i for _, i in s] for s in shares]
    assert all(len(f) == shares[0].steps * shares[0].batch for f in first)
    flat = [i for f in first for i in f]
    if count >= world * shares[0].batch:
        assert len(set(flat)) == len(flat)  # nobody sees another's image
    for s in shares:
        s.epoch = 1
    assert [[i for _, i in s] for s in shares] != first or count < 3


def test_poly_rises_then_falls() -> None:
    rates = [poly(i, 20, 0.9, warmup=4) for i in range(20)]
    assert rates[:4] == [0.2, 0.4, 0.6, 0.8] and rates[4] == 1.0
    assert all(a > b > 0 for a, b in itertools.pairwise(rates[4:]))
    assert poly(10, 20, 1.0) == 0.5


@pytest.mark.slow
def test_two_processes_under_torchrun_share_gradients(tmp_path: Path) -> None:
    """Two processes with half the batch each end where one process with the whole batch does (no dropout)."""
    script = tmp_path / "go.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from torch import nn\n"
        "from tests.trainer.loop.test_fit import Toy, IDS\n"
        "from infercam.trainer.loop.fit import fit\n"
        "stage = Toy(IDS[:8])\n"
        "stage.network = nn.Conv2d(3, 3, 3)\n"
        "nn.init.constant_(stage.network.weight, .1); nn.init.zeros_(stage.network.bias)\n"
        "stage.config = stage.config.model_copy(update={'batch': int(sys.argv[3])})\n"
        "fit(stage, Path(sys.argv[2]))\n"
    )
    run = [sys.executable, str(script), str(ROOT)]
    subprocess.run([*run, str(tmp_path / "one"), "8"], check=True, timeout=120)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(script), str(ROOT), str(tmp_path / "two"), "4"], check=True, timeout=300)
    one, two = weights(tmp_path / "one/last.ckpt"), weights(tmp_path / "two/last.ckpt")
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name].numpy(), two[name].numpy(), atol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_kept_by_the_process() -> None:
    """Steps that free and allocate 48 MB fault no pages in again (in a process of its own)."""
    code = (
        "import resource, sys, torch\n"
        "from infercam.engine.common.memory import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': assert keep_freed_memory()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): torch.ones(12_000_000)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults(); print(faults())\n"
    )
    run = [sys.executable, "-c", code]
    kept, given_back = (
        int(subprocess.run([*run, how], capture_output=True, text=True, check=True).stdout)
        for how in ("keep", "plain")
    )
    assert kept < given_back / 10
