"""`python -m SDFSMISLib.training CONFIG.json`: train by a configuration, or go on where it was stopped."""

import sys
from pathlib import Path

from SDFSMISLib.training.trainer import TrainingConfig, train

if __name__ == "__main__":
    print(train(TrainingConfig.read(Path(sys.argv[1]))))
