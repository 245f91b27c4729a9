"""The process that measures one schedule: reads a job from standard input, prints what was measured, both as JSON."""

from __future__ import annotations

import json
import sys

from SDFSMISLib.bench.schedules import Job, measure

if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.load(sys.stdin)))))
