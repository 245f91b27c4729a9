"""`python -m SDFSMISLib.training CONFIG`: what `sdfsmis train` does, for `accelerate launch -m` on many GPUs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from SDFSMISLib.errors import InputError
from SDFSMISLib.training.config import TrainingConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Train by a configuration; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m SDFSMISLib.training", description="As sdfsmis train.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("file", nargs="?", type=Path, help="JSON, or the name of one of ours, such as built_in")
    which.add_argument("--config", type=Path, metavar="FILE", help="the same, as sdfsmis train takes it")
    parser.add_argument("--cases", metavar="FILE", help="manifest of training scans, in place of the one it names")
    parser.add_argument("--start", metavar="M", help="weights to begin with, in place of those it names")
    parser.add_argument("--output", metavar="DIR", help="folder of checkpoints, log and weights, in place of its own")
    given = parser.parse_args(argv)
    changes = {name: value for name in ("cases", "start", "output") if (value := getattr(given, name)) is not None}
    try:
        config = TrainingConfig.read(given.config or given.file, **changes)
        from accelerate import PartialState

        from SDFSMISLib.evaluation.evaluate import held_out_dice
        from SDFSMISLib.training.trainer import train

        folder = train(config, validate=held_out_dice)
        if PartialState().is_main_process:
            print(folder)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
