"""Where an adaptation stands, in one JSON file beside its checkpoint, so that it may be killed at any moment."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from SDFSMISLib.atomic import atomic_output
from SDFSMISLib.errors import InputError
from SDFSMISLib.training.adaptation_measure import Score

__all__ = ["AdaptationState"]


@dataclass
class AdaptationState:
    """What a run that goes on has to know.

    Attributes:
        path: of the file.
        request: what was asked for; another request does not go on with this.
        scans: contents (sha256, hex) of the scans that are used, in order; empty before they are ready.
        skipped: why scans are not used, by name.
        steps: to learn; 0 before their time is known. every: steps between validations.
        seconds: spent so far, as of the last time it was kept.
        scores: by step; step 0 are the weights at the start.
        best: the step whose weights are kept.
    """

    path: Path
    request: dict[str, Any]
    scans: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    every: int = 1
    seconds: float = 0.0
    scores: dict[int, Score] = field(default_factory=dict)
    best: int = 0

    @classmethod
    def opened(cls, path: Path, request: dict[str, Any]) -> AdaptationState:
        """The state in a file, or a new one.

        Raises:
            InputError: where the file is of another request, or damaged.
        """
        if not path.exists():
            return cls(path, request)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            scores = {int(step): Score(kinds) for step, kinds in content.pop("scores").items()}
            begun = cls(path=path, scores=scores, **content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error}); name another output folder.") from error
        for name, value in request.items():
            if begun.request.get(name) != value:
                raise InputError(
                    f"{path.parent.parent} holds an adaptation that was begun with other {name}; give the same again "
                    "to go on with it, or name another output folder."
                )
        return begun

    def save(self) -> None:
        names = ("request", "scans", "skipped", "steps", "every", "seconds", "best")
        content = {name: getattr(self, name) for name in names}
        content["scores"] = {str(step): dict(score.kinds) for step, score in self.scores.items()}
        with atomic_output(self.path, ".json") as part:
            part.write_text(json.dumps(content, indent=1), encoding="utf-8")
