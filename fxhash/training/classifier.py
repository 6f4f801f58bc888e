"""What a step of training is: the part of a run that Lightning asks us for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F

from fxhash.errors import TrainingError
from fxhash.smh.generator import SMHGenerator
from fxhash.training.batches import Batch
from fxhash.training.depthwise import depthwise_as_products
from fxhash.training.preprocessing import ReadsBytes, mirrored_at_random, mixing, rotated, shifted
from fxhash.training.recipe import Recipe


class Classifier(LightningModule):
    """A model that is trained to classify images.

    Args:
        model: maps images of bytes `(batch, channels, height, width)` to logits `(batch, classes)`.
        recipe: how to train it.
        mirrored: whether images may be mirrored.
        seed: for the order of the images, what is done to them, and dropout, anew in each epoch: a run that is
            interrupted goes on as if it had not been.
        classes: how many there are; mixup and cutmix need it.
        teacher: a model that is distilled into this one (Hinton et al., arXiv 1503.02531): its logits for the same
            images are further targets. It is not trained.
    """

    def __init__(
        self,
        model: ReadsBytes,
        recipe: Recipe,
        mirrored: bool,
        seed: int,
        teacher: nn.Module | None = None,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.flip = recipe.flip and mirrored
        self.seed = seed
        self._mix = mixing(recipe.mixup, recipe.cutmix, classes)
        # Not as a submodule: it is no part of checkpoints, averages or what processes send each other.
        self._teachers = () if teacher is None else (teacher.eval().requires_grad_(False),)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images, which are laid out with the channels last: so convolutions on CPUs are fastest."""
        with depthwise_as_products(images.device.type):
            return self.model(images.contiguous(memory_format=torch.channels_last))

    def on_fit_start(self) -> None:
        """Bring the teacher to where the model is."""
        for teacher in self._teachers:
            teacher.to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take from the schedule of a checkpoint where it stood, not how long it was: a run may go on for longer."""
        for state in checkpoint["lr_schedulers"]:
            for name in ("total_steps", "_schedule_phases"):
                state.pop(name, None)

    def on_train_epoch_start(self) -> None:
        """Draw the same random numbers in this epoch whatever happened before, others in each process."""
        torch.manual_seed(((self.seed * 1_000_003 + self.current_epoch) * 1_000_003 + self.global_rank) % 2**63)

    def training_step(self, batch: Batch | Sequence[Tensor], batch_index: int) -> Tensor:
        """The loss of a batch, weighted as `Batch` says; a pair of images and labels has weight 1."""
        batch = Batch(*batch)
        images, labels = shifted(batch.images, self.recipe.pad), batch.labels
        if self.flip:
            images = mirrored_at_random(images)
        if self.recipe.rotate:
            images = rotated(images, self.recipe.rotate)
        if self._mix is not None:
            images, labels = self._mix(images.float(), labels)
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        for teacher in self._teachers:
            with torch.no_grad():
                targets = teacher(images)
            share = self.recipe.distillation_weight
            loss = (1 - share) * loss + share * distillation_loss(logits, targets, self.recipe.temperature)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}, step {batch_index + 1}: lower "
                "--learning-rate, or give --clip-gradients 1; the checkpoint of the last epoch is as it was"
            )
        self._log_means({"train_loss": loss}, batch)
        return loss * batch.weight

    def validation_step(self, batch: Batch | Sequence[Tensor], batch_index: int) -> None:
        """Loss and accuracy of a batch of the test."""
        batch = Batch(*batch)
        logits = self(batch.images).float()
        measured = {
            "test_loss": F.cross_entropy(logits, batch.labels),
            "test_accuracy": (logits.argmax(1) == batch.labels).float().mean(),
        }
        self._log_means(measured, batch)

    def _log_means(self, means: dict[str, Tensor], batch: Batch) -> None:
        """Log means over a batch, so that over an epoch and all processes each image counts once.

        All processes say the same number of images: Lightning rounds the mean of different ones down.
        """
        of_all = len(batch.labels) if batch.of_all is None else batch.of_all
        weighted = {name: mean * batch.weight for name, mean in means.items()}
        self.log_dict(weighted, on_step=False, on_epoch=True, batch_size=of_all, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """The optimizer, and its learning rate at each step."""
        recipe = self.recipe
        groups = self._groups()
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            nesterov = recipe.momentum > 0
            optimizer = torch.optim.SGD(groups, recipe.learning_rate, momentum=recipe.momentum, nesterov=nesterov)
        else:
            optimizer = torch.optim.AdamW(groups, recipe.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if recipe.schedule == "one-cycle":
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, [group["lr"] for group in groups], total_steps=max(steps, 2), cycle_momentum=False
            )
        else:
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(cosine_with_warmup, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters by weight decay and learning rate; factors have a group of their own if their rate is one."""
        recipe = self.recipe
        generators = [module for module in self.modules() if isinstance(module, SMHGenerator)]
        factors = {id(each) for one in generators for each in (*one.left, *one.more_left, one.right)}
        kinds: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for parameter in self.parameters():
            if parameter.requires_grad:
                is_factor = recipe.factor_rate != 1 and id(parameter) in factors
                kinds.setdefault((parameter.dim() < 2, is_factor), []).append(parameter)
        return [
            {
                "params": parameters,
                "weight_decay": 0.0 if is_small else recipe.weight_decay,
                "lr": recipe.learning_rate * (recipe.factor_rate if is_factor else 1.0),
            }
            for (is_small, is_factor), parameters in sorted(kinds.items())
        ]


def cosine_with_warmup(steps: int, step: int) -> float:
    """The share of the peak learning rate at a step: a line up for 5 % of the steps, then half a cosine down.

    Example:
        >>> [round(cosine_with_warmup(100, step), 2) for step in (0, 4, 5, 52, 99)]
        [0.2, 1.0, 1.0, 0.51, 0.0]
    """
    warmup = max(steps // 20, 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Divergence of the classes' probabilities from a teacher's, both softened (Hinton et al., arXiv 1503.02531).

    Its gradient has the size of that of cross entropy, whatever the temperature.

    Args:
        logits: `(batch, classes)`.
        targets: the teacher's logits, of the same shape.
        temperature: by which both are divided.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 1.0]])
        >>> distillation_loss(logits, logits + 3, temperature=4.0).item()
        0.0
    """
    student, teacher = (F.log_softmax(each.float() / temperature, 1) for each in (logits, targets))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)
