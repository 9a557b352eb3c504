"""How the programs of spiking transformers train on CIFAR-10: timm's augmentation and schedule.

What their configurations switch on and what reaches the network are two things. Applied are: a
RandAugment policy, a mirrored image, an erased rectangle, mixed images with smoothed labels, a
cosine that is set once an epoch with a warm-up and epochs at the last rate behind it, AdamW without
decay of biases and norms. The crop of a random scale is the whole image, since the scale is 1, and
``drop_path`` reaches no layer. Mixed precision is left out here.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.data import Mixup, create_transform
from timm.scheduler import CosineLRScheduler
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import to_pil_image
from trevsnn_augment import posterizing_to_black

#: what most of the programs say
FLAGS: dict[str, Any] = {
    "rand_augment": "rand-m9-n1-mstd0.4-inc1",
    "erasing": 0.25,
    "mixup": 0.5,
    #: epoch from which images are not mixed any more; None for never
    "mixup_off": 200,
    "label_smoothing": 0.1,
    "warmup_epochs": 20,
    "warmup_lr": 1e-5,
    "min_lr": 1e-5,
    "cooldown_epochs": 10,
}


class ProgramRecipe:
    """Batches, targets and learning rates of a program.

    Args:
        recipe: whose ``"program"`` has what it says otherwise than :data:`FLAGS`.
        optimizer: whose rates are set at each epoch.
        mean: of the images' channels.
        classes: number of classes.
    """

    def __init__(
        self, recipe: dict[str, Any], optimizer: torch.optim.Optimizer, mean: Any, classes: int = 10
    ):
        unknown = sorted(set(recipe["program"]) - set(FLAGS))
        if unknown:
            raise ValueError(f"program has {unknown[0]!r}, which is none of {list(FLAGS)}")
        flags = FLAGS | recipe["program"]
        self.epochs = recipe["epochs"] + flags["cooldown_epochs"]
        self.mixup_off = flags["mixup_off"]
        self.transform = posterizing_to_black(
            create_transform(
                32,
                is_training=True,
                scale=(1.0, 1.0),
                ratio=(1.0, 1.0),
                color_jitter=0.0,
                auto_augment=flags["rand_augment"],
                interpolation="bicubic",
                mean=mean,
                std=recipe["std"],
                re_prob=flags["erasing"],
                re_mode="const",
            )
        )
        self.mixup = Mixup(
            mixup_alpha=flags["mixup"],
            label_smoothing=flags["label_smoothing"],
            num_classes=classes,
        )
        self.schedule = CosineLRScheduler(
            optimizer,
            t_initial=recipe["epochs"],
            lr_min=flags["min_lr"],
            warmup_t=flags["warmup_epochs"],
            warmup_lr_init=flags["warmup_lr"],
        )

    def begin(self, epoch: int) -> None:
        """Set the rates, and whether images are mixed."""
        self.schedule.step(epoch)
        self.mixup.mixup_enabled = self.mixup_off is None or epoch < self.mixup_off

    def batch(self, pixels: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``[N, 3, 32, 32]`` from bytes, and probabilities ``[N, classes]``."""
        x = torch.stack([self.transform(to_pil_image(image)) for image in pixels])
        return self.mixup(x, y)

    def loss(self, y_seq: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the mean over the steps."""
        return cross_entropy(y_seq.mean(0), target)

    def stepped(self) -> None:
        """Rates change with epochs only."""
