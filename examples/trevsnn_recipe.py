"""The published recipe of T-RevSNN, as the options of train_trevsnn.py and what they mean.

The defaults are those of the paper's program. What a run changes is printed when it starts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml
from torch import nn
from trevsnn_data import EVENTS, IMAGES

from sj_ext import parameter_groups
from sj_ext.functional import tet_s_cross_entropy

MODELS = {
    "tiny": {"channels": (64, 128, 256, 384), "kernel_size": 3, "num_steps": 4},
    "small": {"channels": (96, 192, 384, 512), "kernel_size": 5, "num_steps": 4},
    "dvs": {"channels": (32, 64, 128, 256), "kernel_size": 3, "num_steps": 10},
}
AMP_DTYPES = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: images per update of the published run, 8 x 512
PUBLISHED_BATCH = 4096


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def make_parser(description: str) -> argparse.ArgumentParser:
    """Every option of the script, in groups."""
    parser = argparse.ArgumentParser(description=description, formatter_class=_Help)
    add = parser.add_argument
    add("--config", type=Path, help="YAML file of options; the command line goes before it")
    add("--output", type=Path, help="folder of checkpoints, log and TensorBoard files")
    add("--eval", type=Path, metavar="CHECKPOINT", help="evaluate ours or a published one, and end")
    add("--init-from", type=Path, metavar="CHECKPOINT", help="first weights: ours or published")
    add("--restart", action="store_true", help="ignore a checkpoint in --output")
    add("--seed", type=int, default=0, help="of weights, order and augmentation")
    add("--checkpoint-every", type=int, default=500, help="updates; and after every epoch")
    add("--log-every", type=int, default=10, help="updates between two lines of log.jsonl")
    _add_data(parser.add_argument_group("data"))
    _add_model(parser.add_argument_group("model"))
    _add_recipe(parser.add_argument_group("recipe"))
    return parser


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--dataset", choices=IMAGES + EVENTS, default="imagefolder", help="what --data-dir holds")
    add("--data-dir", type=Path, help="imagefolder: has train/ and val/")
    add("--size", type=int, help="pixels; by default 224 for folders, CIFAR-10 32, events 64")
    add("--train-images", type=int, help="so many of them, drawn with the seed; by default all")
    add("--val-images", type=int, help="so many of them, drawn with the seed; by default all")
    add("--workers", type=int, default=8, help="loader processes of each training process")
    add(
        *("--skip-bad-images",),
        action="store_true",
        help="put another image in the place of one that cannot be read, and count it",
    )


def _add_model(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--model", choices=MODELS, default="small", help="its channels, kernel size and steps")
    add("--channels", type=int, nargs=4, help="in place of the model's own")
    add("--kernel-size", type=int, help="in place of the model's own")
    add("--num-steps", type=int, help="in place of the model's own")
    add("--encode", choices=("group", "repeat"), default="repeat", help="see TRevSNN")
    add("--norm", choices=("ws", "bn"), default="bn", help="see TRevSNN")
    add("--init", choices=("torch", "published"), default="published", help="first weights")
    add("--momentum", type=float, default=0.19, help="of batch normalisation")
    add(
        *("--memory",),
        choices=("reversible", "autograd"),
        default="reversible",
        help="how the backward pass gets its activations",
    )


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    yes_no = argparse.BooleanOptionalAction
    add("--epochs", type=int, default=300, help="epochs of the whole run")
    add("--warmup-epochs", type=float, default=20, help="epochs of them with a rising rate")
    add("--batch-size", type=int, default=512, help="images of each training process")
    add("--lr", type=float, default=2e-3, help="highest learning rate, for --lr-batch images")
    add("--warmup-lr", type=float, default=1e-5, help="first learning rate, for --lr-batch images")
    add("--min-lr", type=float, default=1e-6, help="last learning rate, for --lr-batch images")
    add("--lr-batch", type=int, default=1024, help="rates grow in proportion to the images")
    add("--weight-decay", type=float, default=0.01, help="of the optimizer")
    add(
        *("--decayed",),
        choices=("published", "weights"),
        default="published",
        help="what decays: all but biases and batch norms, or weights alone",
    )
    add("--label-smoothing", type=float, default=0.1, help="share of the wrong classes")
    add(
        *("--loss",),
        choices=("published", "mean", "last"),
        default="published",
        help="how steps weigh: t/T each and the last once more (events: TET), all alike, the last",
    )
    add("--clip", type=float, default=0.02, help="largest gradient over weight, by unit; 0: none")
    add("--clip-norm", type=float, default=1.0, help="then the largest norm of all; 0: none")
    add("--trust-clip", action=yes_no, default=True, help="LAMB's trust ratio is at most 1")
    add("--opt-eps", type=float, default=1e-8, help="LAMB's epsilon")
    add("--rand-augment", default="rand-m9-mstd0.5-inc1", help="timm's, for images; '' for none")
    add("--erasing", type=float, default=0.25, help="share of images with a rectangle of noise")
    add(
        *("--interpolation",),
        choices=("bilinear", "bicubic"),
        default="bilinear",
        help="of images that are scaled",
    )
    add("--ema", type=float, default=0.9992, help="of the averaged weights, per update")
    add("--ema-warmup", action=yes_no, default=False, help="average over fewer updates at first")
    add(
        *("--amp",),
        choices=AMP_DTYPES,
        help="mixed precision; by default float16 on a GPU and none on a CPU",
    )


_COUNTS = ("batch_size", "epochs", "lr_batch", "train_images", "val_images", "log_every")


def parse(description: str, argv: list[str]) -> argparse.Namespace:
    """Options of a command line, over those of its ``--config``, over the published ones."""
    parser = make_parser(description)
    config = parser.parse_known_args(argv)[0].config
    try:
        args = parser.parse_args([*_tokens(parser, config), *argv])
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--config {config}: {' '.join(str(error).split())}")
    for name in ("data_dir", *(() if args.eval else ("output",))):
        if getattr(args, name) is None:
            parser.error(f"--{name.replace('_', '-')} is needed")
    for name in _COUNTS:
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if args.dataset in EVENTS and args.model != "dvs" and "--model" not in argv:
        args.model = "dvs"
    settings = MODELS[args.model]
    for name, value in settings.items():
        setattr(args, name, getattr(args, name) or value)
    args.channels = tuple(args.channels)
    cuda = torch.cuda.is_available()
    args.amp = args.amp or ("float16" if cuda else "none")
    args.size = args.size or {"imagefolder": 224, "cifar10": 32}.get(args.dataset, 64)
    return args


def _tokens(parser: argparse.ArgumentParser, config: Path | None) -> Iterator[str]:
    """A file of options as the words of a command line."""
    if config is None:
        return
    options = yaml.safe_load(config.read_text("utf-8"))
    if not isinstance(options, dict):
        raise ValueError(f"must hold options, as in 'epochs: 300', got {options!r}")
    for name, value in options.items():
        option = f"--{str(name).replace('_', '-')}"
        if option not in parser._option_string_actions or option == "--config":
            raise ValueError(f"has {name!r}, which is no option")
        if isinstance(value, bool):
            yield option if value else f"--no-{option[2:]}"
        elif isinstance(value, list):
            yield from (option, *map(str, value))
        elif value is not None:
            yield f"{option}={value}"


#: options that belong to the recipe; their defaults are the published values
RECIPE = (
    *("encode", "norm", "init", "momentum", "epochs", "warmup_epochs", "lr", "warmup_lr", "min_lr"),
    *("lr_batch", "weight_decay", "decayed", "label_smoothing", "loss", "clip", "clip_norm"),
    *("trust_clip", "opt_eps", "rand_augment", "erasing", "interpolation", "ema", "ema_warmup"),
)


def deviations(args: argparse.Namespace, images: int) -> list[str]:
    """Where a run of so many images per update is not the published one."""
    published = make_parser("")
    found = [
        f"{name.replace('_', '-')} {getattr(args, name)!r} for {published.get_default(name)!r}"
        for name in RECIPE
        if getattr(args, name) != published.get_default(name)
    ]
    own = MODELS[args.model]
    if args.dataset in EVENTS:
        steps = (10, 16)
        if args.num_steps not in steps:
            found.append(f"num-steps {args.num_steps} for 10 or 16")
        if args.dataset == "ncaltech101":
            found.append("dataset ncaltech101, which has no published recipe")
    else:
        if args.dataset != "imagefolder":
            found.append(f"dataset {args.dataset} at {args.size} pixels for ImageNet at 224")
        elif args.size != 224:
            found.append(f"size {args.size} for 224")
        if args.num_steps != own["num_steps"]:
            found.append(f"num-steps {args.num_steps} for {own['num_steps']}")
    if args.channels != own["channels"] or args.kernel_size != own["kernel_size"]:
        found.append(
            f"channels {args.channels}, kernel-size {args.kernel_size} for {own['channels']}, "
            f"{own['kernel_size']}"
        )
    if images != PUBLISHED_BATCH:
        found.append(
            f"{images} images per update for {PUBLISHED_BATCH}: learning rates are scaled, "
            f"{scaled(args, images)[0]:.3g} for 0.008"
        )
    if args.amp != "float16":
        found.append(f"amp {args.amp} for float16")
    if args.train_images:
        found.append(f"{args.train_images} training images for all")
    found.append("a potential at the threshold fires in evaluation as in training (always so)")
    return found


def scaled(args: argparse.Namespace, images: int) -> tuple[float, float, float]:
    """Highest, first and last learning rate for so many images per update."""
    factor = images / args.lr_batch
    return args.lr * factor, args.warmup_lr * factor, args.min_lr * factor


def learning_rate(epoch: float, epochs: int, warmup: float, rates: tuple[float, ...]) -> float:
    """Linear to the highest rate, then along half a cosine to the last; ``epoch`` has fractions."""
    highest, first, last = rates
    if epoch < warmup:
        return first + (highest - first) * epoch / warmup
    done = (epoch - warmup) / (epochs - warmup)
    return last + (highest - last) * 0.5 * (1 + math.cos(math.pi * done))


def groups(model: nn.Module, weight_decay: float, decayed: str) -> list[dict]:
    """Parameters with and without weight decay.

    As published: biases and batch norms are without, gains, scales and decays are with. Else as
    :func:`sj_ext.parameter_groups` has them.
    """
    if decayed == "weights":
        return parameter_groups(model, weight_decay)
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def training_loss(
    y_seq: torch.Tensor, target: torch.Tensor, *, weights: str, label_smoothing: float, events: bool
) -> torch.Tensor:
    """The loss of logits ``[T, N, classes]``.

    As published, for images the sum over steps of (t/T) CE_t and CE_T once more; for events TET,
    the mean over steps, with 0.001 of the square distance of the logits from 1.
    """
    y_seq, steps = y_seq.float(), len(y_seq)
    share = None
    if weights == "last":
        y_seq = y_seq[-1:]
    elif weights == "published" and not events:
        share = [(step + 1) / steps + (step == steps - 1) for step in range(steps)]
    loss = tet_s_cross_entropy(y_seq, target, label_smoothing=label_smoothing, step_weights=share)
    if weights == "published" and events:
        loss = 0.999 * loss + 0.001 * (y_seq - 1).square().mean()
    return loss
