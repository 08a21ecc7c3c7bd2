"""One fit, by Lightning: batches, loss, averaging, curves, progress."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset
from torchmetrics import MeanMetric

from tsexp import signals, tasks
from tsexp.config import TrainConfig
from tsexp.data import Dataset
from tsexp.models import Network, using_threads
from tsexp.progress import bar
from tsexp.training.fitted import Teacher

log = logging.getLogger(__name__)

VALIDATIONS = 25


def fit(
    model: Network,
    config: TrainConfig,
    dataset: Dataset,
    seed: int,
    title: str,
    teacher: Teacher | None = None,
) -> list[dict[str, float]]:
    """See `tsexp.training.fit`."""
    with torch.random.fork_rng(), using_threads(config.threads), _quiet():
        torch.manual_seed(seed)
        epochs = epochs_of(config, len(dataset.fit))
        batches = Batches(model, config, dataset, teacher)
        fitting = Fitting(model, config, teacher, tasks.of(dataset))
        curves = Curves(config, len(dataset.fit))
        callbacks: list[Callback] = [curves, Progress(title, epochs, config.progress)]
        if config.ema:
            # After Curves: while validating, the averaged weights are in place, and Curves must see those.
            callbacks.append(Averaging(config.ema))
        if config.patience and len(dataset.val):
            callbacks.append(EarlyStopping("val_loss", patience=config.patience))
        trainer = L.Trainer(
            accelerator="gpu" if config.device == "cuda" else "cpu",
            devices=1,
            max_epochs=epochs,
            callbacks=callbacks,
            gradient_clip_val=config.clip or None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # Without a choice to make, some points of the curve are enough.
            check_val_every_n_epoch=1
            if config.select == "best" or config.patience
            else max(1, epochs // VALIDATIONS),
            deterministic="warn" if config.device == "cuda" else None,
        )
        model.train()  # Lightning keeps the mode that it finds, and a loaded model is ready to answer
        try:
            trainer.fit(fitting, batches)
        except SystemExit:  # Lightning's word for Ctrl-C, and for SIGTERM
            raise (signals.Terminated() if signals.terminated() else KeyboardInterrupt()) from None
    model.cpu().eval()
    if config.select == "best" and curves.best is not None:
        model.load_state_dict(curves.best)
    if any(not torch.isfinite(p).all() for p in model.parameters()):
        raise RuntimeError(f"{title}: the weights are not finite any more; lower train.lr or set train.clip")
    return curves.history


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's greetings and hints say nothing that the progress bar does not."""
    loggers = [
        logging.getLogger(n)
        for n in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


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
        self, model: Network, config: TrainConfig, dataset: Dataset, teacher: Teacher | None
    ) -> None:
        super().__init__()
        self.batch_size = config.batch_size
        series = torch.from_numpy(dataset.x_train)
        x, mask = _preprocessed(model, series)
        y = torch.from_numpy(dataset.y_train)
        scores = torch.empty(len(y), 0) if teacher is None else _scores(teacher.model, series)
        every = TensorDataset(
            x, torch.empty(len(y), 0, dtype=torch.bool) if mask is None else mask, y, scores
        )
        self.fit, self.val = (TensorDataset(*every[torch.from_numpy(i)]) for i in (dataset.fit, dataset.val))

    def train_dataloader(self) -> DataLoader[Any]:
        # A batch sampler as sampler indexes the tensors once per batch instead of once per series.
        sampler = BatchSampler(RandomSampler(self.fit), self.batch_size, drop_last=False)
        return DataLoader(self.fit, sampler=sampler, batch_size=None)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self.val, sampler=BatchSampler(SequentialSampler(self.val), 256, drop_last=False), batch_size=None
        )


@torch.no_grad()
def _preprocessed(model: Network, series: Tensor) -> tuple[Tensor, Tensor | None]:
    """In parts, for what is computed on the way may be far larger than what comes out."""
    parts, masks = zip(*(model.preprocess(part) for part in series.split(256)), strict=True)
    return torch.cat(parts), None if masks[0] is None else torch.cat(masks)


@torch.no_grad()
def _scores(model: Network, series: Tensor) -> Tensor:
    """A teacher prepares series itself: the student may see less of them."""
    model.eval()
    return torch.cat([model(part) for part in series.split(256)])


class Fitting(L.LightningModule):
    """Loss, optimizer and validation metrics of one fit."""

    def __init__(self, model: Network, config: TrainConfig, teacher: Teacher | None, task: Any) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.task = task
        self.distill = (teacher.weight, teacher.temperature) if teacher else None
        # One per step; a metric's update costs small models 2 % of their speed.
        self.train_loss: list[Tensor] = []
        self.validation = task.Validation(len(model.arch.classes))
        self.val_loss = MeanMetric()

    def training_step(self, batch: tuple[Tensor, ...], _: int) -> Tensor:
        x, mask, y, teacher = batch
        members = self.model.members(x, mask if mask.numel() else None)
        loss = torch.stack([self._loss(scores, y, teacher) for scores in members]).mean()
        self.train_loss.append(loss.detach() * len(y))
        return loss  # type: ignore[no-any-return]

    def _loss(self, scores: Tensor, y: Tensor, teacher: Tensor) -> Tensor:
        loss = self.task.loss(scores, y, self.config.label_smoothing)
        if self.distill is not None:
            weight, t = self.distill
            loss = (1 - weight) * loss + weight * self.task.distillation(scores, teacher, t)
        return loss  # type: ignore[no-any-return]

    def validation_step(self, batch: tuple[Tensor, ...], _: int) -> None:
        x, mask, y, _teacher = batch
        scores = self.model.network(x, mask if mask.numel() else None)
        self.val_loss.update(self.task.loss(scores, y), len(y))
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
        warmup = max(1, round(c.warmup * total))

        def factor(step: int) -> float:
            if c.warmup and step < warmup:
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
        self.history: list[dict[str, float]] = []
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
            self.best = {k: v.detach().cpu().clone() for k, v in pl_module.model.state_dict().items()}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Fitting)
        line = {"epoch": trainer.current_epoch, "train_loss": float(sum(pl_module.train_loss)) / self.series}
        pl_module.train_loss.clear()
        if not math.isfinite(line["train_loss"]):
            raise RuntimeError(
                f"the loss is not a number in epoch {trainer.current_epoch}; lower train.lr or set train.clip"
            )
        if self._validated is not None:
            line |= {"val_accuracy": self._validated[0], "val_loss": self._validated[1]}
            self._validated = None
        self.history.append(line | {"lr": trainer.optimizers[0].param_groups[0]["lr"]})


class Averaging(Callback):
    """Validates and ends with an exponential moving average of the weights.

    The decay is warmed up, at step t at most (1 + t) / (10 + t): a constant .99 would leave three quarters of
    the weight on the first of 30 steps. From step 9 / (1 - decay) on, the decay is the one asked for.

    Lightning's `WeightAveraging` walks through the modules at every step to find their parameters again,
    which costs small models 5 % of their speed.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._step = 0
        self._current: list[Tensor] = []
        self._average: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self._average:
            self._step += 1
            decay = min(self._decay, (1 + self._step) / (10 + self._step))
            torch._foreach_lerp_(self._average, self._current, 1 - decay)
        else:  # as PyTorch's AveragedModel: the first step is its own average
            assert isinstance(pl_module, Fitting)
            self._current = [p.detach() for p in pl_module.model.parameters()]
            self._average = [p.clone() for p in self._current]

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap()
        renew_statistics(trainer, pl_module)

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
def renew_statistics(trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Let batch norms see the series that are fitted, with the weights that are in place.

    Averaged weights have not seen any, and what norms saw on the way belongs to other weights
    (Izmailov et al. 2018, arXiv 1803.05407).
    """
    model: Network = pl_module.model  # type: ignore[assignment]
    norms = {m: m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)}
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # all batches count the same
    training = model.training
    model.train()
    batches: Batches = trainer.datamodule  # type: ignore[attr-defined]
    for i in torch.arange(len(batches.fit)).tensor_split(max(1, len(batches.fit) // batches.batch_size)):
        x, mask, *_ = (t.to(pl_module.device) for t in batches.fit[i])
        model.network(x, mask if mask.numel() else None)
    model.train(training)
    for norm, momentum in norms.items():
        norm.momentum = momentum


class Progress(Callback):
    """One bar over all epochs, with the time that is left."""

    def __init__(self, title: str, epochs: int, show: bool) -> None:
        self.bar = bar(title, epochs, show=show)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.start()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.advance(f"epoch {trainer.current_epoch + 1}")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.bar.stop()
