"""`python -m SDFSMISLib.training CONFIG.json`: what `sdfsmis train` does, for `accelerate launch -m` on many GPUs."""

import sys
from pathlib import Path

from SDFSMISLib.training.config import TrainingConfig
from SDFSMISLib.training.trainer import train

if __name__ == "__main__":
    print(train(TrainingConfig.read(Path(sys.argv[1]))))
