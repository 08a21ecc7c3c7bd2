"""One fit, by Lightning: batches, loss, averaging, curves, progress."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torchmetrics import MeanMetric

from tsexp import tasks
from tsexp.cache import Unfinished
from tsexp.config import ConfigError, TrainConfig, digest
from tsexp.data import Dataset
from tsexp.models import Network, using_threads
from tsexp.system import alive, signals
from tsexp.system.progress import bar
from tsexp.training.teacher import Teacher

log = logging.getLogger(__name__)

VALIDATIONS = 25
GLANCE = 1024
"""Series that batch norms see before a validation that nothing is chosen by."""
CHECKPOINT = "training.ckpt"
KEEP_S = 300.0
"""A fit is kept at the end of an epoch if it was not for so long."""
GRACE_S = 5.0
"""A process of an interrupted fit is interrupted, too, and killed so much later."""


def fit(
    model: Network,
    config: TrainConfig,
    dataset: Dataset,
    seed: int,
    title: str,
    teacher: Teacher | None = None,
    unfinished: Unfinished | None = None,
) -> list[dict[str, float]]:
    """See `tsexp.training.fit`."""
    if not len(dataset.val):  # nothing to choose by
        config = replace(config, select="last", patience=0)
    with torch.random.fork_rng(), using_threads(config.threads), _quiet():
        torch.manual_seed(seed)
        batches = Batches(model, config, dataset, teacher, seed)
        fitting = Fitting(model, config, teacher, tasks.of(dataset))
        keeping = None
        if unfinished is not None and config.devices == 1:
            keeping = Keeping(unfinished, digest(asdict(model.arch)))
        trainer = _trainer(config, dataset, seed, title, keeping)
        model.train()  # Lightning keeps the mode that it finds, and a loaded model is ready to answer
        kept = None if keeping is None else keeping.checkpoint()
        try:
            with _processes(trainer) if config.devices > 1 else contextlib.nullcontext():
                trainer.fit(fitting, batches, ckpt_path=kept, weights_only=True)
        except BaseException as error:
            if _interrupted(error):
                raise (signals.Terminated() if signals.terminated() else KeyboardInterrupt()) from None
            if keeping is not None and keeping.restoring:
                raise RuntimeError(
                    f"{title}: cannot go on from what is kept in {keeping.unfinished.folder}; delete it, and "
                    "the same command begins anew"
                ) from error
            raise
    model.cpu().eval()
    if any(not torch.isfinite(p).all() for p in model.parameters()):
        raise RuntimeError(f"{title}: the weights are not finite any more; lower train.lr or set train.clip")
    return fitting.history


def _trainer(
    config: TrainConfig, dataset: Dataset, seed: int, title: str, keeping: Keeping | None
) -> L.Trainer:
    """Lightning's, with our callbacks in the order that they need."""
    epochs = epochs_of(config, len(dataset.fit))
    callbacks: list[Callback] = [Curves(config, len(dataset.fit)), Progress(title, epochs, config.progress)]
    chosen = config.select == "best" or config.patience > 0
    if config.ema:
        # After Curves: while validating, the averaged weights are in place, and Curves must see those.
        callbacks.append(Averaging(config.ema, None if chosen else GLANCE))
    if config.patience:
        callbacks.append(EarlyStopping("val_loss", patience=config.patience))
    if keeping is not None:
        callbacks.append(keeping)
    # In a job of SLURM, Lightning would take SLURM's tasks for the processes.
    how: dict[str, Any] = {"plugins": [LightningEnvironment(), InPlace()]}
    if config.devices > 1:
        how |= _several(config.devices, len(dataset.val))
        callbacks.append(OneOfSeveral(config.threads, seed))  # after Averaging, which renews statistics
    return L.Trainer(
        accelerator="gpu" if config.device == "cuda" else "cpu",
        devices=config.devices,
        max_epochs=epochs,
        callbacks=callbacks,
        gradient_clip_val=config.clip or None,
        logger=False,
        enable_checkpointing=keeping is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # Without a choice to make, some points of the curve are enough.
        check_val_every_n_epoch=1 if chosen else max(1, epochs // VALIDATIONS),
        deterministic="warn" if config.device == "cuda" else None,
        **how,
    )


def _several(devices: int, val: int) -> dict[str, Any]:
    """How Lightning trains on several devices of this machine."""
    if 0 < val < devices:
        raise ConfigError(
            f"train.devices={devices} cannot share {val} validation series; use fewer devices or a larger "
            "data.val_fraction"
        )
    return {
        # Of Lightning's ways, `popen` (plain "ddp") would run this process' command line again, which Hydra
        # has taken apart and which may be that of a server; `fork` does not bear CUDA, nor the pools of
        # threads that this process may have. `spawn` needs neither, and is the same on CPU and GPU: what
        # tests try without a GPU is what runs with several.
        # Buffers are constants but for the statistics of batch norms: see `OneOfSeveral`.
        "strategy": OneMachine(start_method="spawn", broadcast_buffers=False),
        "use_distributed_sampler": False,  # `Batches` has its own, which counts no series twice
    }


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C or SIGTERM is behind an error.

    Lightning's word for them is SystemExit, unless what it does before it ends fails, of a loop half begun.
    """
    while error is not None:
        if isinstance(error, SystemExit | KeyboardInterrupt | signals.Terminated):
            return True
        error = error.__context__
    return False


LOGGERS = [
    logging.getLogger(n)
    for n in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
]


def _silence() -> None:
    """Lightning's greetings and hints say nothing that the progress bar does not."""
    warnings.filterwarnings("ignore", module="lightning")
    for logger in LOGGERS:
        logger.setLevel(logging.WARNING)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    levels = [logger.level for logger in LOGGERS]
    with warnings.catch_warnings():
        _silence()
        try:
            yield
        finally:
            for logger, level in zip(LOGGERS, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def _processes(trainer: L.Trainer) -> Iterator[None]:
    """What the processes of several devices find, and that none is left."""
    with alive.scratch("fit") as folder:  # Lightning leaves one where it has handed the weights over
        loopback = "lo" if sys.platform == "linux" else "lo0"
        given = {"TMPDIR": str(folder), "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", loopback)}
        # Of a launcher around this process, or of the fit before: Lightning would take its processes, or its
        # port, for ours.
        strange = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")
        before = {name: os.environ.pop(name, None) for name in (*given, *strange)}
        os.environ.update(given)
        try:
            yield
        except ProcessRaisedException as error:
            raise RuntimeError(f"on one of the devices: {str(error).strip().splitlines()[-1]}") from error
        except ProcessExitedException as error:  # it said why itself
            raise RuntimeError(f"on one of the devices: {error}") from None
        finally:
            launcher: Any = trainer.strategy.launcher
            launcher.kill(signal.SIGINT)
            for process in launcher.procs:
                process.join(GRACE_S)
                process.kill()
                process.join()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


class OneMachine(DDPStrategy):
    """DDP whose processes meet in a file: the default is a port, on all of the machine's addresses."""

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        cuda = self.root_device.type == "cuda"
        torch.distributed.init_process_group(
            "nccl" if cuda else "gloo",
            init_method=(Path(os.environ["TMPDIR"]) / "met").as_uri(),
            rank=self.global_rank,
            world_size=self.world_size,
            device_id=self.root_device if cuda else None,
        )
        super().setup_distributed()  # which leaves a group that is there alone


def epochs_of(config: TrainConfig, series: int) -> int:
    """Whole epochs, at least one, of at least ``min_steps`` and at most ``max_steps`` steps.

    Large sets need fewer passes than small ones.
    """
    steps = math.ceil(series / config.batch_size)
    epochs = max(config.epochs, math.ceil(config.min_steps / steps))
    return max(1, min(epochs, config.max_steps // steps)) if config.max_steps else epochs


class Batches(L.LightningDataModule):
    """The train split in memory, preprocessed once (the preprocessing has no parameters).

    A batch is (x, mask, y, teacher scores); mask and teacher scores have zero columns where there are none.
    """

    def __init__(
        self, model: Network, config: TrainConfig, dataset: Dataset, teacher: Teacher | None, seed: int
    ) -> None:
        super().__init__()
        self.batch_size = config.batch_size
        self.seed = seed
        series = torch.from_numpy(dataset.x_train)
        x, mask = _preprocessed(model, series)
        y = torch.from_numpy(dataset.y_train)
        scores = torch.empty(len(y), 0) if teacher is None else _scores(teacher.model, series)
        every = TensorDataset(
            x, torch.empty(len(y), 0, dtype=torch.bool) if mask is None else mask, y, scores
        )
        self.fit, self.val = (TensorDataset(*every[torch.from_numpy(i)]) for i in (dataset.fit, dataset.val))

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        devices, rank = self.trainer.world_size, self.trainer.global_rank
        if devices == 1:
            return self._by_batch(self.fit, RandomSampler(self.fit), self.batch_size)
        # Equally many for each: up to devices - 1 series come twice in an epoch.
        order: DistributedSampler[Any] = DistributedSampler(self.fit, devices, rank, seed=self.seed)
        loader = self._by_batch(self.fit, order, self.batch_size // devices)
        loader.sampler.set_epoch = order.set_epoch  # type: ignore[attr-defined] # Lightning looks for it there
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        devices, rank = self.trainer.world_size, self.trainer.global_rank
        if devices == 1:
            return self._by_batch(self.val, SequentialSampler(self.val), 256)
        # Each series once: what PyTorch's sampler repeats would be counted twice.
        share = UnrepeatedDistributedSampler(self.val, num_replicas=devices, rank=rank, shuffle=False)
        return self._by_batch(self.val, share, 256)

    @staticmethod
    def _by_batch(series: TensorDataset, order: Any, size: int) -> DataLoader[Any]:
        # A batch sampler as sampler indexes the tensors once per batch instead of once per series.
        return DataLoader(series, sampler=BatchSampler(order, size, drop_last=False), batch_size=None)


@torch.no_grad()
def _preprocessed(model: Network, series: Tensor) -> tuple[Tensor, Tensor | None]:
    """In parts, for what is computed on the way may be far larger than what comes out."""
    parts, masks = zip(*(model.preprocess(part) for part in series.split(model.at_once)), strict=True)
    return torch.cat(parts), None if masks[0] is None else torch.cat(masks)


@torch.no_grad()
def _scores(model: Network, series: Tensor) -> Tensor:
    """A teacher prepares series itself: the student may see less of them."""
    model.eval()
    return torch.cat([model(part) for part in series.split(model.at_once)])


class Fitting(L.LightningModule):
    """Loss, optimizer and validation metrics of one fit."""

    def __init__(self, model: Network, config: TrainConfig, teacher: Teacher | None, task: Any) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.loss, self.distillation = task.loss, task.distillation
        self.distill = (teacher.weight, teacher.temperature) if teacher else None
        # One per step; a metric's update costs small models 2 % of their speed.
        self.train_loss: list[Tensor] = []
        self.validation = task.Validation(len(model.arch.classes))
        self.val_loss = MeanMetric()
        self.history: list[dict[str, float]] = []

    def get_extra_state(self) -> Any:
        """From one of several processes, Lightning brings the state back, and nothing else."""
        return self.history

    def set_extra_state(self, state: Any) -> None:
        self.history = state

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        x, mask, y, teacher = batch
        # Not by Lightning's plugin, which neither clips with a fused optimizer nor leaves validation as it is
        # deployed, in fp32.
        with torch.autocast(self.device.type, torch.bfloat16, self.config.precision == "bf16"):
            members = self.model.members(x, mask if mask.numel() else None)
        loss = torch.stack([self._loss(scores, y, teacher) for scores in members]).mean()
        self.train_loss.append(loss.detach() * len(y))
        return loss  # type: ignore[no-any-return]

    def _loss(self, scores: Tensor, y: Tensor, teacher: Tensor) -> Tensor:
        scores = scores.float()
        loss = self.loss(scores, y, self.config.label_smoothing)
        if self.distill is not None:
            weight, t = self.distill
            loss = (1 - weight) * loss + weight * self.distillation(scores, teacher, t)
        return loss  # type: ignore[no-any-return]

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        x, mask, y, _teacher = batch
        scores = self.model.network(x, mask if mask.numel() else None)
        self.val_loss.update(self.loss(scores, y), len(y))
        self.validation.update(scores, y)

    def on_validation_epoch_end(self) -> None:
        self.log("val_loss", self.val_loss)  # EarlyStopping reads it

    def configure_optimizers(self) -> Any:
        c = self.config
        # Weight decay pulls on matrices only: not on biases, norms, positions and the class token.
        matrices = [p for n, p in self.model.named_parameters() if p.ndim > 1 and "positions" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim <= 1 or "positions" in n]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[c.optimizer]
        optimizer = kind(groups, lr=c.lr, weight_decay=c.weight_decay, fused=True)
        total = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, round(c.warmup * total)) if c.warmup else 0

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            if c.schedule == "none":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Curves(Callback):
    """One line per epoch, and the best weights by validation accuracy (ties: lower loss)."""

    def __init__(self, config: TrainConfig, series: int) -> None:
        self.keep = config.select == "best"
        self.series = series
        self.best: dict[str, Tensor] | None = None
        self._score = (-math.inf, -math.inf)
        self._validated: tuple[float, float] | None = None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Fitting)
        accuracy, loss = float(pl_module.validation.compute()), float(pl_module.val_loss.compute())
        pl_module.validation.reset()
        self._validated = accuracy, loss
        if self.keep and (accuracy, -loss) > self._score:
            self._score = accuracy, -loss
            if trainer.is_global_zero:
                self.best = {k: v.detach().cpu().clone() for k, v in pl_module.model.state_dict().items()}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Fitting)
        devices = trainer.world_size
        total = float(trainer.strategy.reduce(sum(pl_module.train_loss), reduce_op="sum"))  # type: ignore[arg-type]
        seen = math.ceil(self.series / devices) * devices
        line = {"epoch": trainer.current_epoch, "train_loss": total / seen}
        pl_module.train_loss.clear()
        if not math.isfinite(line["train_loss"]):
            raise RuntimeError(
                f"the loss is not a number in epoch {trainer.current_epoch}; lower train.lr or set train.clip"
            )
        if self._validated is not None:
            line |= {"val_accuracy": self._validated[0], "val_loss": self._validated[1]}
            self._validated = None
        pl_module.history.append(line | {"lr": trainer.optimizers[0].param_groups[0]["lr"]})

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Fitting)
        if self.best is not None:
            pl_module.model.load_state_dict(self.best)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "score": self._score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._score = state_dict["best"], state_dict["score"]


class Averaging(Callback):
    """Validates and ends with an exponential moving average of the weights.

    The decay is warmed up, at step t at most (1 + t) / (10 + t): a constant .99 would leave three quarters of
    the weight on the first of 30 steps. From step 9 / (1 - decay) on, the decay is the one asked for.

    Lightning's `WeightAveraging` walks through the modules at every step to find their parameters again,
    which costs small models 5 % of their speed.

    Before a validation, batch norms see as many series as `glance` says (None: all), at the end all.
    """

    def __init__(self, decay: float, glance: int | None = None) -> None:
        self._decay = decay
        self._glance = glance
        self._step = 0
        self._current: list[Tensor] = []
        self._average: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._step, self._average = state_dict["step"], state_dict["average"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Fitting)
        self._current = [p.detach() for p in pl_module.model.parameters()]
        self._average = [a.to(p.device) for a, p in zip(self._average, self._current, strict=False)]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._average:
            self._step += 1
            decay = min(self._decay, (1 + self._step) / (10 + self._step))
            torch._foreach_lerp_(self._average, self._current, 1 - decay)
        else:  # as PyTorch's AveragedModel: the first step is its own average
            self._average = [p.clone() for p in self._current]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap()
        renew_statistics(trainer, pl_module, self._glance)

    def on_validation_epoch_end(self, *_: Any) -> None:
        self._swap()  # statistics may stay: training does not read them

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch._foreach_copy_(self._current, self._average)
        renew_statistics(trainer, pl_module)

    def _swap(self) -> None:
        kept = [p.clone() for p in self._current]
        torch._foreach_copy_(self._current, self._average)
        torch._foreach_copy_(self._average, kept)


@torch.no_grad()
def renew_statistics(trainer: L.Trainer, pl_module: L.LightningModule, most: int | None = None) -> None:
    """Let batch norms see the fit series, or so many of them, with the weights that are in place.

    Averaged weights have not seen any, and what norms saw on the way belongs to other weights
    (Izmailov et al. 2018, arXiv 1803.05407).
    """
    model: Network = pl_module.model  # type: ignore[assignment]
    norms = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm)}
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches count the same
    training = model.training
    model.train()
    batches: Batches = trainer.datamodule  # type: ignore[attr-defined]
    # Drawn: files are sorted by class, and the variance between classes would be missing in parts of one.
    drawn = torch.randperm(len(batches.fit), generator=torch.Generator().manual_seed(0))[:most]
    for i in drawn.tensor_split(max(1, len(drawn) // batches.batch_size)):
        x, mask, *_ = (t.to(pl_module.device) for t in batches.fit[i])
        model.network(x, mask if mask.numel() else None)
    model.train(training)
    for norm, momentum in norms.items():
        norm.momentum = momentum


class OneOfSeveral(Callback):
    """In a process of its own for one of several devices: what it sets for itself, and what it shares."""

    def __init__(self, threads: int, seed: int) -> None:
        self.threads, self.seed = threads, seed

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What comes first in such a process."""
        self.__dict__.update(state)
        _silence()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed + (trainer.global_rank << 32))  # else all would drop the same units

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._share_statistics(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._share_statistics(trainer, pl_module)

    def _share_statistics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Each has seen its share of the series; what is validated is what is kept."""
        for norm in pl_module.modules():
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
                for seen in (norm.running_mean, norm.running_var):
                    assert seen is not None
                    seen.copy_(trainer.strategy.reduce(seen.clone(), reduce_op="mean"))  # type: ignore[arg-type]


class Keeping(Checkpoint):
    """Keeps what a fit has at the end of an epoch, so that another process may go on.

    Lightning calls it after all others, and restores weights, optimizer, schedule, loops and callbacks. What
    draws the order of series and what is dropped is restored here. Of a change to what is kept, here or in
    another callback, `fitted.KEPT_VERSION` has to tell.

    Attributes
    ----------
    restoring
        From when a checkpoint is asked for until a fit goes on from it.
    """

    def __init__(self, unfinished: Unfinished, arch: str = "") -> None:
        self.unfinished = unfinished
        self.arch = arch
        self.restoring = False
        self._last = time.monotonic()
        self._drawn: dict[str, Tensor] = {}

    def checkpoint(self) -> Path | None:
        """Return what a process before this one kept, if it can be read and is of the same model.

        Which features a model chooses may hang on rounding, and so on the machine.
        """
        if self.unfinished.found is None:
            return None
        path = self.unfinished.found / CHECKPOINT
        try:
            kept = torch.load(path, "cpu", weights_only=True)["callbacks"][self.state_key]
            if kept.get("arch", self.arch) != self.arch:
                raise ValueError("it is of a model that sees other features")
        except Exception as error:  # whatever somebody made of it
            log.warning("what was kept in %s cannot be read (%s): not used", path.parent, error)
            self.unfinished.before = None
            return None
        self.restoring = True
        return path

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.is_initialized()
        return {"cpu": torch.get_rng_state(), "arch": self.arch} | (
            {"cuda": torch.cuda.get_rng_state()} if cuda else {}
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._drawn = state_dict

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.restoring = False
        if self._drawn:
            torch.set_rng_state(self._drawn["cpu"].cpu())
            if "cuda" in self._drawn and pl_module.device.type == "cuda":
                torch.cuda.set_rng_state(self._drawn["cuda"].cpu())
            self._drawn = {}
            # As the iterator of a new epoch does, which Lightning had made before it came here.
            torch.empty((), dtype=torch.int64).random_()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After the last epoch the entry follows; and Lightning does not end a fit twice that has ended.
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not last and time.monotonic() - self._last >= KEEP_S:
            self.unfinished.keep(lambda folder: trainer.save_checkpoint(folder / CHECKPOINT))
            self._last = time.monotonic()


class InPlace(TorchCheckpointIO):
    """Writes where it is told: Lightning's own passes through memory and `TMPDIR`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        torch.save(checkpoint, path)


class Progress(Callback):
    """One bar over all epochs, with the time that is left."""

    def __init__(self, title: str, epochs: int, show: bool) -> None:
        self.title, self.epochs, self.show = title, epochs, show
        self.bar: bar | None = None  # made where it is shown: it cannot be sent there

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            done = trainer.current_epoch
            title = self.title + (f", going on after epoch {done}" if done else "")
            self.bar = bar(title, self.epochs, show=self.show)
            self.bar.start(done)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.bar is not None:
            self.bar.advance(f"epoch {trainer.current_epoch + 1}")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
