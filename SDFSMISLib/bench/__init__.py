"""`sdfsmis bench`: seconds and memory per query slice, beside the schedules of the official code, all in one run."""

from SDFSMISLib.bench.run import print_report, run_bench
from SDFSMISLib.bench.schedules import SIZES

__all__ = ["SIZES", "print_report", "run_bench"]
