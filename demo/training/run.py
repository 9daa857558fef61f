"""What both trainings share: a budget of minutes that survives a kill, and a line that tells."""

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

RUNS = Path(__file__).parent / "runs"


def together(work: Callable[..., None], workers: int, *args: Any) -> None:
    """Runs work(*args) in so many processes of one thread each, which share their gradients.

    On a machine that does other things too this is several times as fast as one process with as
    many threads: those wait for one another in every operation, these once a step.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = f"file://{folder}/meeting"
        torch.multiprocessing.spawn(_join, (workers, where, work, args), nprocs=workers)


def _join(rank: int, workers: int, where: str, work: Callable[..., None], args: Any) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_flush_denormal(True)
    if workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=workers)
    work(*args)


def _end_with(parent: int) -> None:
    """Whoever is killed takes its processes along: two trainings in one folder spoil both."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def place() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def agree(value: float) -> float:
    """The first process's value, for all."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


def share_gradients(parameters: list[nn.Parameter]) -> None:
    """Every process's gradients become the mean of all."""
    if dist.is_initialized():
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


class Budget:
    """Minutes of work done so far, kept across restarts, so that schedules follow the work."""

    def __init__(self, minutes: float, used: float = 0.0) -> None:
        self.total, self.used, self._since = 60 * minutes, used, time.monotonic()
        self.save_every = min(120, self.total / 10)  # seconds: what a kill may cost

    def tick(self) -> float:
        """Counts the time since the last call; returns the part of the budget that is used."""
        now = time.monotonic()
        work = min(now - self._since, 60)  # longer than that, the machine slept
        self.used, self._since = agree(self.used + work), now
        return min(1.0, self.used / self.total)


class Average:
    """Exponential moving averages of weights: what is kept, shown and judged."""

    def __init__(self, *modules: nn.Module, decay: float) -> None:
        self.modules, self.decay, self.steps = modules, decay, 0
        self.live = [p for m in modules for p in m.parameters()]
        self.kept = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.kept, [p.detach() for p in self.live], 1 - decay)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, kept in zip(self.live, self.kept, strict=True):
            held = live.clone()
            live.copy_(kept)
            kept.copy_(held)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for mine, theirs in zip(self.kept, state["kept"], strict=True):
            mine.copy_(theirs)


def save(path: Path, state: dict[str, Any]) -> None:
    """All or nothing: a kill in the middle leaves the state before."""
    if place()[0]:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def say(file: Path, **facts: object) -> None:
    """One line to the terminal and to the log that the model card is written from."""
    if place()[0]:
        return
    parts = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
    print(time.strftime("%H:%M:%S"), *parts, sep="  ", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as log:
        log.write(json.dumps(facts, default=str) + "\n")


def progress(part: float, left_s: float) -> str:
    full = round(20 * part)
    return f"[{'#' * full}{'.' * (20 - full)}] {left_s / 60:.1f} min left"
