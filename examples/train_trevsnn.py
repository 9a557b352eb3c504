"""Train T-RevSNN on ImageNet-style folders, CIFAR-10 or event datasets.

    torchrun --nproc-per-node 8 examples/train_trevsnn.py --data-dir IMAGENET --output runs/small
    python examples/train_trevsnn.py --dataset cifar10 --data-dir CIFAR --model tiny \\
        --batch-size 128 --epochs 100 --output runs/cifar
    python examples/train_trevsnn.py --dataset cifar10dvs --data-dir DVS --model dvs --size 64 \\
        --batch-size 32 --epochs 100 --output runs/dvs

The defaults are the paper's recipe for ImageNet: LAMB, learning rate 2e-3 for 8 x 512 images, 300
epochs of which 20 warm up, cosine, weight decay 0.01, label smoothing 0.1, gradients clipped at
0.02, RandAugment m9, random erasing 0.25, EMA 0.9992, mixed precision.

A run that ends for whatever reason goes on from its last checkpoint when the same command is given
again, at the very batch, and ends with the same weights as a run that was never interrupted.

Needs timm, tqdm and tensorboard beside sj_ext.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from stopping import said
from timm.optim import Lamb
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from trevsnn_data import EVENTS, IMAGES, OwnRandomNumbers, ResumableOrder, build_datasets

from sj_ext import parameter_groups
from sj_ext.checkpoint import load_checkpoint, save_checkpoint
from sj_ext.functional import tet_s_cross_entropy
from sj_ext.model import TRevSNN

MODELS = {
    "tiny": {"channels": (64, 128, 256, 384), "kernel_size": 3, "num_steps": 4},
    "small": {"channels": (96, 192, 384, 512), "kernel_size": 5, "num_steps": 4},
    "dvs": {"channels": (32, 64, 128, 256), "kernel_size": 3, "num_steps": 8},
}
AMP_DTYPES = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", choices=IMAGES + EVENTS, default="imagefolder")
    add("--data-dir", type=Path, required=True, help="imagefolder: has train/ and val/")
    add("--output", type=Path, required=True, help="checkpoints and TensorBoard files")
    add("--workers", type=int, default=8, help="loader processes of each training process")
    add("--size", type=int, help="default: folders 224, CIFAR-10 32, events 128")

    add("--model", choices=MODELS, default="small")
    add("--channels", type=int, nargs=4, help="in place of the model's own")
    add("--num-steps", type=int, help="in place of the model's own")
    add("--encode", choices=("group", "repeat"), default="group")
    add("--norm", choices=("ws", "bn"), default="ws")
    add("--memory", choices=("reversible", "autograd"), default="reversible")

    add("--epochs", type=int, default=300)
    add("--warmup-epochs", type=float, default=20)
    add("--batch-size", type=int, default=512, help="of each training process")
    add("--lr", type=float, default=2e-3, help="the default is for 4096 images")
    add("--weight-decay", type=float, default=0.01)
    add("--label-smoothing", type=float, default=0.1)
    add("--clip", type=float, default=0.02, help="largest norm of the gradient; 0: no limit")
    add("--rand-augment", default="rand-m9-mstd0.5-inc1", help="'' for none")
    add("--erasing", type=float, default=0.25)
    add("--ema", type=float, default=0.9992)
    add("--amp", choices=AMP_DTYPES, default=None, help="default: bfloat16 on a GPU, none on a CPU")

    add("--seed", type=int, default=0)
    add("--checkpoint-every", type=int, default=500, help="updates; and after every epoch")
    add("--restart", action="store_true", help="ignore a checkpoint in --output")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available() and args.amp is None:
        args.amp = "none"
    args.amp = args.amp or "bfloat16"
    args.size = args.size or {"imagefolder": 224, "cifar10": 32}.get(args.dataset, 128)
    return args


class Run:
    """One process of a training run."""

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
        settings = dict(MODELS[args.model])
        settings["channels"] = args.channels or settings["channels"]
        settings["num_steps"] = args.num_steps or settings["num_steps"]
        self._make_loaders(settings["num_steps"])
        self._make_model(settings)
        self.updates = self.epoch = self.batch = 0
        self.best = 0.0
        self.writer = None

    @contextlib.contextmanager
    def first_process_first(self) -> Iterator[None]:
        """The other processes go through the body when the first one has."""
        several = self.world_size > 1
        if several and self.rank:
            dist.barrier()
        yield
        if several and not self.rank:
            dist.barrier()

    def _make_loaders(self, num_steps: int) -> None:
        args = self.args
        with self.first_process_first():  # which downloads and converts
            train, val, self.num_classes = build_datasets(
                args.dataset,
                args.data_dir,
                size=args.size,
                num_steps=num_steps,
                rand_augment=args.rand_augment or None,
                erasing=args.erasing,
            )
        self.order = ResumableOrder(
            len(train), args.batch_size, self.rank, self.world_size, args.seed
        )
        common = {"num_workers": args.workers, "pin_memory": self.device.type == "cuda"}
        self.train_loader = DataLoader(
            OwnRandomNumbers(train, args.seed), args.batch_size, sampler=self.order, **common
        )
        share = range(self.rank, len(val), self.world_size)
        self.val_loader = DataLoader(torch.utils.data.Subset(val, share), args.batch_size, **common)

    def _make_model(self, settings: dict) -> None:
        args = self.args
        torch.manual_seed(args.seed)
        self.model = TRevSNN(
            settings["channels"],
            self.num_classes,
            settings["num_steps"],
            kernel_size=settings["kernel_size"],
            encode=args.encode,
            norm=args.norm,
            memory=args.memory,
            events=self.events,
        ).to(self.device)
        self.ema = ModelEmaV3(self.model, args.ema, use_warmup=True)
        self.net = self.model
        if self.world_size > 1:
            devices = [self.device.index] if self.device.type == "cuda" else None
            self.net = DistributedDataParallel(self.model, devices)
        # the gradient is clipped below, for every optimizer alike
        groups = parameter_groups(self.model, args.weight_decay)
        self.optimizer = Lamb(groups, args.lr, max_grad_norm=None)
        batches = self.order.batches
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=args.epochs * batches,
            lr_min=args.lr * 1e-3,
            warmup_t=round(args.warmup_epochs * batches),
            warmup_lr_init=args.lr * 1e-3,
            t_in_epochs=False,
        )
        self.amp = AMP_DTYPES[args.amp]
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.amp is torch.float16 and self.device.type == "cuda"
        )

    # -- checkpoints

    @property
    def checkpoint(self) -> Path:
        return self.args.output / "last.pt"

    def save(self) -> None:
        """Write a checkpoint so that at every moment a whole one is there."""
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {
                "updates": self.updates,
                "epoch": self.epoch,
                "batch": self.batch,
                "best": self.best,
            },
            "run": self._identity(),
        }
        save_checkpoint(state, self.checkpoint)

    def _identity(self) -> dict:
        """What must be the same for a checkpoint to be continued exactly."""
        names = ("dataset", "model", "channels", "num_steps", "encode", "norm", "size", "epochs")
        names += ("batch_size", "seed")
        values = {name: getattr(self.args, name) for name in names}
        return {**values, "world_size": self.world_size}

    def resume(self) -> None:
        if self.args.restart or not self.checkpoint.exists():
            return
        state = load_checkpoint(self.checkpoint, map_location=self.device)
        mine = self._identity()
        changed = [f"{k}: {v} then, {mine[k]} now" for k, v in state["run"].items() if v != mine[k]]
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

    def train(self) -> None:
        self.args.output.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self.rank == 0:
            self.writer = SummaryWriter(self.args.output / "tensorboard", purge_step=self.updates)
        while self.epoch < self.args.epochs:
            self.train_epoch()
            accuracy, ema_accuracy = self.evaluate(self.model), self.evaluate(self.ema.module)
            self.best = max(self.best, accuracy, ema_accuracy)
            self.epoch, self.batch = self.epoch + 1, 0
            self.save()
            if self.writer:
                self.writer.add_scalar("accuracy/model", accuracy, self.updates)
                self.writer.add_scalar("accuracy/ema", ema_accuracy, self.updates)
                print(
                    f"epoch {self.epoch}/{self.args.epochs}: accuracy {accuracy:.4f}, "
                    f"EMA {ema_accuracy:.4f}, best {self.best:.4f}",
                    flush=True,
                )
        if self.writer:
            self.writer.close()

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
        for x, target in bar:
            loss, norm = self.update(self.to_device(x), target.to(self.device, non_blocking=True))
            self.batch += 1
            if self.writer and self.updates % 10 == 0:
                images = (self.batch - first) * self.args.batch_size * self.world_size
                speed = images / (time.perf_counter() - start)
                self.log(bar, float(loss), float(norm), speed)
            if self.updates % self.args.checkpoint_every == 0 and self.batch < self.order.batches:
                self.save()

    def update(self, x: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Whatever draws from the generators draws the same in a run that goes on from here.
        torch.manual_seed((self.args.seed * 1_000_003 + self.updates) * self.world_size + self.rank)
        self.schedule.step_update(self.updates)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            y_seq = self.net(x)
        loss = tet_s_cross_entropy(y_seq.float(), target, label_smoothing=self.args.label_smoothing)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        limit = self.args.clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        self.ema.update(self.model, step=self.updates)
        return loss.detach(), norm

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
        bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.2e}", img_s=f"{speed:.0f}")

    def close(self) -> None:
        """Leave the group, after everything that uses it and when everybody is done."""
        if self.world_size > 1:
            dist.barrier()
            self.net = self.model
            gc.collect()
            dist.destroy_process_group()

    @torch.no_grad()
    def evaluate(self, model: TRevSNN) -> float:
        """Accuracy on the whole validation set, over all processes."""
        model.eval()
        if self.world_size > 1:  # running statistics are those of the first process everywhere
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        counts = torch.zeros(2, dtype=torch.float64, device=self.device)
        for x, target in self.val_loader:
            with self.autocast():
                y = model(self.to_device(x))
            counts[0] += (y.argmax(-1) == target.to(self.device)).sum()
            counts[1] += len(target)
        if self.world_size > 1:
            dist.all_reduce(counts)
        return float(counts[0] / counts[1])


def main(argv: list[str] | None = None) -> None:
    run = Run(parse(argv))
    with said(run.saved):
        run.train()
    run.close()


if __name__ == "__main__":
    main()
