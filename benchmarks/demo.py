"""What `make demo` scored, stored with what made it.

    make demo
    python benchmarks/demo.py

To be called in the work tree in which the demo ran, before anything in it is changed: rows are stamped with its sources.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from common import Rows, Sources, save, scores_of, stamped_scores

from dim.score.record import read_scores


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Store the demo's scores."""

    scores: str = "runs/demo/scores.json"
    """What the demo wrote."""
    result: str = "digits-dim-demo"
    """Its name."""


def main(arguments: Arguments) -> Path:
    """Stamp every row."""
    sources, scores = Sources.of(__file__), read_scores(arguments.scores)
    rows = Rows(sources, scores[0].hardware["device"], {})
    for score in scores:
        facts = {"student": score.student, "protocol": score.protocol, "seeds": list(score.seeds)}
        rows.put(f"{score.name}, {score.track} {score.ipc}", scores_of([score]), score.seconds, **facts)
    return save(arguments.result, {"kind": "scores", "scores": stamped_scores(rows.made)})


if __name__ == "__main__":
    print(main(tyro.cli(Arguments)))
