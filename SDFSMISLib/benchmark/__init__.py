"""The published benchmark of few-shot medical image segmentation: its data, folds, protocols, runs and tables."""

from __future__ import annotations

from SDFSMISLib.benchmark.data_sets import DATA_SETS, FOLDS, DataSet, Fold, fold_of, ordered_cases
from SDFSMISLib.benchmark.run import Model, Plan, Trainer, TrainingJob, measure_folds, train_folds
from SDFSMISLib.benchmark.scores import FoldResult, Score, organ_means, read_fold_results

__all__ = [
    "DATA_SETS",
    "FOLDS",
    "DataSet",
    "Fold",
    "FoldResult",
    "Model",
    "Plan",
    "Score",
    "Trainer",
    "TrainingJob",
    "fold_of",
    "ordered_cases",
    "organ_means",
    "read_fold_results",
    "measure_folds",
    "train_folds",
]
