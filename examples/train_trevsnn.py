"""Train T-RevSNN on ImageNet-style folders, CIFAR-10 or event datasets.

    torchrun --nproc-per-node 8 examples/train_trevsnn.py --data-dir IMAGENET --output runs/small
    python examples/train_trevsnn.py --config examples/configs/cifar10_tiny.yaml \\
        --data-dir CIFAR --output runs/cifar
    python examples/train_trevsnn.py --config examples/configs/cifar10dvs_t16.yaml \\
        --data-dir DVS --output runs/dvs
    python examples/train_trevsnn.py --eval runs/small/last.pt --data-dir IMAGENET

The defaults are the recipe of the paper's program for ImageNet; what a run does otherwise is
printed when it starts. examples/configs holds the published configurations.

A run that ends for whatever reason goes on from its last checkpoint when the same command is given
again, at the very batch, and ends with the same weights as a run that was never interrupted.

Needs timm, tqdm, PyYAML and tensorboard beside sj_ext.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import trevsnn_weights
from stopping import said
from timm.optim import Lamb
from timm.utils import ModelEmaV3
from timm.utils.agc import adaptive_clip_grad
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from trevsnn_data import EVENTS, OwnRandomNumbers, Readable, ResumableOrder, build_datasets, some
from trevsnn_recipe import (
    AMP_DTYPES,
    RECIPE,
    deviations,
    groups,
    learning_rate,
    parse,
    scaled,
    training_loss,
)

from sj_ext.analysis import activation_memory
from sj_ext.checkpoint import load_checkpoint, save_checkpoint
from sj_ext.model import TRevSNN

#: loss scale that mixed precision in float16 starts with
FIRST_SCALE = 32768.0


class BadImage(RuntimeError):
    """A sample could not be read, and the run is not to go on without it."""


class Run:
    """One process of a training run, or of an evaluation."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        self.device = torch.device("cpu")
        if cuda:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.world_size > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        self.events = args.dataset in EVENTS
        self.amp = AMP_DTYPES[args.amp]
        self.updates = self.epoch = self.batch = self.skipped = 0
        self.best = 0.0
        self.writer = self.file = None

    @contextlib.contextmanager
    def first_process_first(self) -> Iterator[None]:
        """The other processes go through the body when the first one has."""
        several = self.world_size > 1
        if several and self.rank:
            dist.barrier()
        yield
        if several and not self.rank:
            dist.barrier()

    def say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)

    # -- making

    def make_loaders(self, num_steps: int) -> None:
        """Training and validation batches of frames for so many steps."""
        args = self.args
        with self.first_process_first():  # which downloads and converts
            train, val, self.num_classes = build_datasets(
                args.dataset,
                args.data_dir,
                size=args.size,
                num_steps=num_steps,
                rand_augment=args.rand_augment or None,
                erasing=args.erasing,
                interpolation=args.interpolation,
            )
        train, val = (
            Readable(some(data, count, args.seed))
            for data, count in ((train, args.train_images), (val, args.val_images))
        )
        common = {"num_workers": args.workers, "pin_memory": self.device.type == "cuda"}
        share = range(self.rank, len(val), self.world_size)
        self.val_loader = DataLoader(Subset(val, share), args.batch_size, **common)
        if args.eval:
            return
        self.order = ResumableOrder(
            len(train), args.batch_size, self.rank, self.world_size, args.seed
        )
        self.train_loader = DataLoader(
            OwnRandomNumbers(train, args.seed), args.batch_size, sampler=self.order, **common
        )

    def make_model(self) -> None:
        """The network, what averages and optimises it, and its first weights."""
        args = self.args
        torch.manual_seed(args.seed)
        self.arguments = {
            "channels": args.channels,
            "num_classes": self.num_classes,
            "num_steps": args.num_steps,
            "kernel_size": args.kernel_size,
            "encode": args.encode,
            "norm": args.norm,
            "momentum": args.momentum,
            "events": self.events,
            "every_step": self.events,
        }
        self.model = TRevSNN(**self.arguments, memory=args.memory, init=args.init).to(self.device)
        if args.init_from and (args.restart or not self.checkpoint.exists()):
            self.say(trevsnn_weights.start_from(self.model, args.init_from))
        # one at a time: the columns share tensors, which are averaged once for each column
        self.ema = ModelEmaV3(self.model, args.ema, use_warmup=args.ema_warmup, foreach=False)
        self.net = self.model
        if self.world_size > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.net = DistributedDataParallel(self.model, devices)
        self.rates = scaled(args, args.batch_size * self.world_size)
        self.optimizer = Lamb(
            groups(self.model, args.weight_decay, args.decayed),
            self.rates[0],
            eps=args.opt_eps,
            max_grad_norm=args.clip_norm or None,
            trust_clip=args.trust_clip,
        )
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            init_scale=FIRST_SCALE,
            enabled=self.amp is torch.float16 and self.device.type == "cuda",
        )

    # -- checkpoints

    @property
    def checkpoint(self) -> Path:
        return self.args.output / "last.pt"

    def save(self) -> None:
        """Write a checkpoint so that at every moment a whole one is there."""
        if self.rank:
            return
        progress = ("updates", "epoch", "batch", "best", "skipped")
        state = {
            "arguments": self.arguments,
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {name: getattr(self, name) for name in progress},
            "run": self._identity(),
        }
        save_checkpoint(state, self.checkpoint)

    def _identity(self) -> dict:
        """What must be the same for a checkpoint to be continued exactly."""
        names = ("dataset", "model", "channels", "kernel_size", "num_steps", "size", "batch_size")
        names += ("train_images", "seed", *RECIPE)
        values = {name: getattr(self.args, name) for name in names}
        return {**values, "world_size": self.world_size}

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if self.args.restart or not self.checkpoint.exists():
            return
        state = load_checkpoint(self.checkpoint, map_location=self.device)
        then, now = state["run"], self._identity()
        changed = [
            f"{name}: {then.get(name)} then, {now.get(name)} now"
            for name in sorted(then.keys() | now.keys())
            if then.get(name) != now.get(name)
        ]
        if changed:
            raise ValueError(
                f"{self.checkpoint} is of another run ({'; '.join(changed)}); give another "
                "--output, or --restart"
            )
        self.model.load_state_dict(state["model"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for name, value in state["progress"].items():
            setattr(self, name, value)

    def saved(self) -> str:
        """What is kept of this run, for whoever reads why it ended."""
        process = f"process {self.rank} of {self.world_size}, " if self.world_size > 1 else ""
        kept = "no checkpoint yet"
        if self.checkpoint.exists():
            kept = f"{self.checkpoint} keeps those up to the last save"
        return f"{process}{self.updates} updates done; {kept}"

    # -- training

    def prepare(self) -> None:
        """All that can fail before the first batch, and what the run will be."""
        self.make_loaders(self.args.num_steps)
        self.make_model()
        self.args.output.mkdir(parents=True, exist_ok=True)
        self.resume()
        for line in deviations(self.args, self.args.batch_size * self.world_size):
            self.say(f"not as published: {line}")
        if self.rank == 0:
            bytes_each = self.memory_per_sample()
            self.say(f"memory per sample: {bytes_each / 2**20:.3g} MiB at the peak of an update")
            self.writer = SummaryWriter(self.args.output / "tensorboard", purge_step=self.updates)
            self.file = (self.args.output / "log.jsonl").open("a", encoding="utf-8")

    def train(self) -> None:
        while self.epoch < self.args.epochs:
            self.train_epoch()
            accuracy, ema_accuracy = self.evaluate(self.model), self.evaluate(self.ema.module)
            self.best = max(self.best, accuracy, ema_accuracy)
            skipped = self.over_processes(self.skipped)
            self.epoch, self.batch = self.epoch + 1, 0
            self.save()
            if self.writer:
                self.writer.add_scalar("accuracy/model", accuracy, self.updates)
                self.writer.add_scalar("accuracy/ema", ema_accuracy, self.updates)
            passed = f", {skipped:.0f} bad images skipped" if skipped else ""
            self.say(
                f"epoch {self.epoch}/{self.args.epochs}: accuracy {accuracy:.4f}, "
                f"EMA {ema_accuracy:.4f}, best {self.best:.4f}{passed}"
            )
        if self.writer:
            self.writer.close()
            self.file.close()

    def train_epoch(self) -> None:
        self.net.train()
        self.order.epoch, self.order.first_batch = self.epoch, self.batch
        bar = tqdm(
            self.train_loader,
            desc=f"epoch {self.epoch + 1}",
            total=self.order.batches,
            initial=self.batch,
            disable=True if self.rank > 0 else None,
            mininterval=1.0,
        )
        start, first = time.perf_counter(), self.batch
        for x, target, wrong in bar:
            self.skip(wrong)
            self.skipped += sum(map(bool, wrong))
            loss, norm = self.update(self.to_device(x), target.to(self.device, non_blocking=True))
            self.batch += 1
            if self.writer and self.updates % self.args.log_every == 0:
                images = (self.batch - first) * self.args.batch_size * self.world_size
                speed = images / (time.perf_counter() - start)
                self.log(bar, float(loss), float(norm), speed)
            if self.updates % self.args.checkpoint_every == 0 and self.batch < self.order.batches:
                self.save()

    def skip(self, wrong: tuple[str, ...]) -> None:
        """Name the images of a batch that could not be read, or stop because of them."""
        for message in filter(None, wrong):
            if not self.args.skip_bad_images:
                raise BadImage(f"{message}; --skip-bad-images goes on without such images")
            tqdm.write(f"skipped: {message}", file=sys.stderr)

    def update(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        args = self.args
        # Whatever draws from the generators draws the same in a run that goes on from here.
        torch.manual_seed((args.seed * 1_000_003 + self.updates) * self.world_size + self.rank)
        epoch = self.epoch + self.batch / self.order.batches
        rate = learning_rate(epoch, args.epochs, args.warmup_epochs, self.rates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.net, x, target)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if args.clip:
            adaptive_clip_grad(parameters, args.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        self.ema.update(self.model, step=self.updates)
        return loss.detach(), norm

    def loss(self, net: torch.nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            y_seq = net(x)
        return training_loss(
            y_seq,
            target,
            weights=self.args.loss,
            label_smoothing=self.args.label_smoothing,
            events=self.events,
        )

    def backward(self, net: torch.nn.Module, x: torch.Tensor, target: torch.Tensor) -> None:
        self.loss(net, x, target).backward()

    def memory_per_sample(self) -> float:
        """Bytes that an update needs more for one sample more, counted on a copy of the network."""
        size = (self.args.size, self.args.size)
        shape = (2 * self.args.num_steps, *size) if self.events else (3, *size)
        peaks = []
        for count in (2, 4):
            net = copy.deepcopy(self.model).train()
            x = torch.rand(count, *shape, device=self.device)
            if self.events:
                x = x.unflatten(1, (-1, 2)).transpose(0, 1)
            target = torch.zeros(count, dtype=torch.long, device=self.device)
            step = functools.partial(self.backward, net, x, target)
            peaks.append(activation_memory(step)[1].peak)
        return (peaks[1] - peaks[0]) / 2

    def autocast(self):
        if self.amp is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp)

    def to_device(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.device, non_blocking=True)
        return x.transpose(0, 1) if self.events else x  # [N, T, ...] of the loader to [T, N, ...]

    def log(self, bar: tqdm, loss: float, norm: float, speed: float) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        values = {"loss": loss, "gradient norm": norm, "lr": lr, "images per second": speed}
        if self.device.type == "cuda":
            values["GPU memory (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
        for name, value in values.items():
            self.writer.add_scalar(f"train/{name}", value, self.updates)
        self.file.write(json.dumps({"update": self.updates, **values}) + "\n")
        self.file.flush()
        bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.2e}", img_s=f"{speed:.0f}")

    # -- evaluation

    def evaluate_checkpoint(self, path: Path) -> None:
        """Print the accuracy of a checkpoint's weights, and of its averaged ones."""
        found = trevsnn_weights.read(path)
        self.make_loaders(found.arguments["num_steps"])
        model = TRevSNN(**found.arguments).to(self.device)
        if model.events != self.events or model.num_classes != self.num_classes:
            kind = "events" if model.events else "images"
            raise ValueError(
                f"--eval {path} is of a network for {kind} of {model.num_classes} classes, but "
                f"{self.args.dataset} has {self.num_classes}; give its --dataset and --data-dir"
            )
        for name, state in (("accuracy", found.model), ("EMA", found.ema)):
            if state is not None:
                model.load_state_dict(state)
                self.say(f"{name} {self.evaluate(model):.4f}")

    @torch.no_grad()
    def evaluate(self, model: TRevSNN) -> float:
        """Accuracy on the validation set, over all processes, without images that are bad."""
        model.eval()
        if self.world_size > 1:  # running statistics are those of the first process everywhere
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        counts = torch.zeros(2, dtype=torch.float64, device=self.device)
        for x, target, wrong in self.val_loader:
            self.skip(wrong)
            with self.autocast():
                y = model(self.to_device(x))
            good = torch.tensor([not message for message in wrong], device=self.device)
            right = y.argmax(-1) == target.to(self.device)
            counts += torch.stack([(right & good).sum(), good.sum()])
        right, seen = map(self.over_processes, counts.tolist())
        return right / max(seen, 1)

    def over_processes(self, number: float) -> float:
        """The sum of the processes' numbers."""
        if self.world_size == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def close(self) -> None:
        """Leave the group, after everything that uses it and when everybody is done."""
        if self.world_size > 1:
            dist.barrier()
            self.net = None
            gc.collect()
            dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    run = Run(parse(__doc__, sys.argv[1:] if argv is None else argv))
    # what is wrong before the first batch is wrong with the arguments or the files
    with in_one_line(ValueError, TypeError, OSError, RuntimeError):
        if run.args.eval:
            run.evaluate_checkpoint(run.args.eval)
        else:
            run.prepare()
    if not run.args.eval:
        with in_one_line(BadImage, OSError), said(run.saved):
            run.train()
    run.close()


@contextlib.contextmanager
def in_one_line(*expected: type[Exception]) -> Iterator[None]:
    """End the program with one line for an error that says all that its user needs to know."""
    try:
        yield
    except expected as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        message = " ".join(str(error).split())
        raise SystemExit(f"train_trevsnn.py: error: {message}{notes}") from None


if __name__ == "__main__":
    main()
