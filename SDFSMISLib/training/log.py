"""What a run says of itself while it goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

__all__ = ["Log"]

SAY_EVERY = 50  # steps


class Log:
    """Means over some steps, as lines of `log.jsonl` and, where that package is installed, for tensorboard."""

    def __init__(self, output: Path, writes: bool) -> None:
        self.path, self.writes = output / "log.jsonl", writes
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.began, self.steps, self.text = time.monotonic(), 0, ""
        self.board = _tensorboard(output) if writes else None

    def add(self, step: int, steps: int, parts: dict[str, float]) -> str:
        """Take a step's numbers in; returns the last line's loss and overlap in a few words."""
        self.steps += 1
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        if step % SAY_EVERY == 0 or step == steps:
            seconds = (time.monotonic() - self.began) / self.steps
            means = {name: self.sums[name] / self.counts[name] for name in self.sums}
            self.write({"step": step, "seconds": round(seconds, 2)} | means)
            self.text = ", ".join(f"{name} {means[name]:.3f}" for name in ("loss", "overlap") if name in means)
            self.sums, self.counts = {}, {}
        return self.text

    def write(self, record: dict[str, float]) -> None:
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as log:
            log.write(json.dumps({name: round(value, 5) for name, value in record.items()}) + "\n")
        if self.board is not None:
            for name, value in record.items():
                self.board.add_scalar(name, value, int(record["step"]))
            self.board.flush()


def _tensorboard(output: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(output / "tensorboard"))
