"""Cards: the README.md of a generator or a set that is shared, as the Hugging Face Hub shows it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dim.data.formats.imagefolder import class_folders
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.sampler import identity
from dim.score.claims import claims_of
from dim.score.privacy import AUDIT_NOTE, COLUMNS, AuditResult, audit_cells
from dim.score.record import Score, label_kind_of
from dim.score.report import format_accuracy, format_bytes
from dim.text import for_markdown

SAMPLES = "samples.png"
_SHOWN = 10  # images of a class, and classes
# By our name: what the data are, what their authors say of a licence, and the Hub's name of it.
_SOURCES = {
    "digits": ("Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI)", "CC BY 4.0, says UCI", "cc-by-4.0"),
    "mnist": ("MNIST (LeCun, Cortes, Burges)", "unknown; Keras says CC BY-SA 3.0", "unknown"),
    "fashion-mnist": ("Fashion-MNIST (Xiao, Rasul, Vollgraf 2017)", "MIT", "mit"),
    "svhn": ("SVHN (Netzer and others 2011)", "for non-commercial use only", "other"),
    "cifar10": ("CIFAR-10 (Krizhevsky 2009)", "unknown: its authors name none", "unknown"),
    "cifar100": ("CIFAR-100 (Krizhevsky 2009)", "unknown: its authors name none", "unknown"),
    "tiny-imagenet": ("Tiny ImageNet (Stanford), a part of ImageNet", "unknown; ImageNet: for research only", "unknown"),
}
# Which files are images for the `datasets` library, where it can read the format.
_DATA_FILES = {"imagefolder": "*/*.png", "parquet": "data.parquet", "webdataset": "data-*.tar"}


def model_card(generator: Generator, info: dict[str, Any], audit: AuditResult | None = None) -> str:
    """A model card that says what the generator is, what it was trained on, what an audit found, and how to use it.

    Raises:
        InputError: if the audit is of another generator.
    """
    spec, about = generator.spec, info["about"]
    around = "of all latents"
    if generator.anchors is not None:
        policy = f"{about.get('policy', 'chosen')}, spread {generator.spread:g}"
        around = f"around {generator.anchors.shape[1]} images per class ({policy})"
    facts = {
        "data": f"{spec.name}, {spec.num_classes} classes, {spec.height}x{spec.width}x{spec.channels}",
        "architecture": f"{info['generator']['name']}, {sum(value.numel() for value in generator.parameters()):,} parameters",
        "images": around,
        "steps": f"{about.get('step')} of {about.get('total_steps')}",
        **({"departures": _departures(about["departures"])} if about.get("departures") else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
    }
    return f"""---
library_name: dim-distill
tags: [dataset-distillation, image-generation]
---
# A generator that stands for {for_markdown(spec.name)}

{for_markdown(about.get("title", ""))}

{_facts(facts)}
{"" if audit is None else f"{chr(10)}{_audited(generator, audit)}{chr(10)}"}
![samples]({SAMPLES})
{_claimed(generator)}
```python
import dim

generator = dim.load_generator("hub:OWNER/NAME")  # or this folder
dim.sample_set(generator, ipc=10, seed=0).save("set-10")
```
"""


def set_card(subject: SyntheticSet, storage: str, scores: Sequence[Score] = (), audit: AuditResult | None = None) -> str:
    """A dataset card that says what a set is, what its source's licence is, how it scored, and how to load it.

    Args:
        subject: the set.
        storage: the format that it is stored in.
        scores: rows of `dim evaluate`; those of this set and of controls are shown.
        audit: what `dim audit` found of it.

    Raises:
        InputError: if scores are given and none is of this set, or the audit is of another one.
    """
    spec, info = subject.spec, subject.info
    source, licence, licence_id = _SOURCES.get(info.get("data", {}).get("dataset", ""), (spec.name, "unknown", "unknown"))
    per_class = f"{len(subject)} images" if subject.ipc is None else f"{subject.ipc} images per class (IPC)"
    kind = "8 bits per channel" if subject.images.dtype == torch.uint8 else "float32"
    step_size = info.get("step_size")
    facts = {
        "stands for": f"{source}: {spec.num_classes} classes of {spec.height}x{spec.width}x{spec.channels}",
        "images": f"{per_class}, {kind}, {format_bytes(sum(subject.bytes_stored().values()))} with labels",
        "made by": info.get("method", "unknown"),
        "labels": label_kind_of(subject),
        **({} if step_size is None else {"learned step size": f"{step_size:.4g}"}),
        **({"students see": "ZCA-whitened images"} if info.get("protocol", {}).get("zca") else {}),
        "licence of the source": licence,
        "fingerprint of the source": spec.fingerprint,
        "versions": ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items()) or "unknown",
    }
    files = f"\nconfigs:\n- config_name: default\n  data_files: '{_DATA_FILES[storage]}'" if storage in _DATA_FILES else ""
    hub = '\nimport datasets\n\ntable = datasets.load_dataset("OWNER/NAME", split="train")  # images and labels alone'
    parts = [
        f"---\nlicense: {licence_id}\ntask_categories: [image-classification]\ntags: [dataset-distillation]{files}\n---",
        f"# A distilled set that stands for {for_markdown(spec.name)}",
        _facts(facts),
        *([_scores(subject, scores)] if scores else []),
        *([text] if (text := _claimed(subject).strip()) else []),
        *([] if audit is None else [_audited(subject, audit)]),
        _pictures(subject) if storage == "imagefolder" else f"![samples]({SAMPLES})",
        '```python\nimport dim\n\nsubject = dim.load_set("hub:OWNER/NAME")  # or this folder; a map-style Dataset\n'
        f'scores = dim.evaluate(subject, students=["convnet"], seeds=5, root="DIR")\n{hub if files else ""}'.rstrip()
        + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(facts: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {for_markdown(text)} |" for name, text in facts.items())])


def _scores(subject: SyntheticSet, scores: Sequence[Score]) -> str:
    """A table of the rows that are of the set, and of controls on the same data."""
    own = [score for score in scores if score.made.get("digest") == identity(subject)]
    if not own:
        raise InputError(f"none of {len(scores)} scores is of this set: measure it with 'dim evaluate SET --json FILE'")
    of = (own[0].split, own[0].data.get("fingerprint"))
    controls = [one for one in scores if "digest" not in one.made and (one.split, one.data.get("fingerprint")) == of]
    named = [("this set", score) for score in own] + [(score.name, score) for score in controls]
    return "\n".join([f"Accuracy on the {of[0]} part in percent, last epoch, mean ± std over n students:", "", *_rows(named)])


def _claimed(subject: SyntheticSet | Generator) -> str:
    """What a set or a generator claims of itself, and how to test it; empty if it claims nothing."""
    rows = [claim.score for claim in claims_of(subject) if claim.is_of(subject)]
    if not rows:
        return ""
    what = "set" if isinstance(subject, SyntheticSet) else "generator"
    parts = " and ".join(dict.fromkeys(row.split for row in rows))
    lines = [
        f"Claimed accuracy on the {parts} part in percent, last epoch, mean ± std over n students. The protocol travels with"
    ]
    lines += [f"the {what}, so everybody can test the claim with fresh students:", "", "    dim verify hub:OWNER/NAME"]
    return "\n".join(["", *lines, "", *_rows([(f"this {what}", row) for row in rows]), ""])


def _rows(named: Sequence[tuple[str, Score]]) -> list[str]:
    """Lines of a table of scores by name."""
    lines = ["| trained on | track | IPC | student | labels | accuracy | n | steps |", "|---|---|---|---|---|---|---|---|"]
    for name, score in named:
        cells = [name, score.track, "-" if score.ipc is None else score.ipc, score.student]
        cells += [score.labels, format_accuracy(score), len(score.accuracies), f"{score.steps:,}"]
        lines.append(f"| {' | '.join(for_markdown(cell) for cell in cells)} |")
    return lines


def _audited(subject: Generator | SyntheticSet, audit: AuditResult) -> str:
    """What an audit found, as a table."""
    if audit.digest != identity(subject):
        raise InputError(f"the audit is of {audit.name!r} with other content: audit this one with 'dim audit'")
    lines = ["What it reveals of the images that it was made from:", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(map(for_markdown, cells))} |" for cells in audit_cells(audit.rows)]
    lines += ["", *(f"- {for_markdown(line)}" for line in audit.findings()), "", for_markdown(AUDIT_NOTE)]
    return "\n".join(lines)


def _pictures(subject: SyntheticSet) -> str:
    """The first images of the first classes, a row each, as they lie in class folders: another picture there would be read as an
    image of the set."""
    counts = torch.bincount(subject.labels, minlength=subject.spec.num_classes).tolist()
    rows = []
    for folder, count in list(zip(class_folders(subject.spec), counts, strict=True))[:_SHOWN]:
        rows.append("".join(f'<img src="{folder}/{number:05d}.png" width="48">' for number in range(min(count, _SHOWN))))
    return "<br>\n".join(rows)


def _departures(stated: Sequence[Mapping[str, Any]]) -> str:
    """Where a run went on with other settings than it began with, see `dim.continuation.continues`."""
    changes = [(each["step"], name, *pair) for each in stated for name, pair in each["changes"].items()]
    return "; ".join(f"{name} from {before} to {after} after step {step}" for step, name, before, after in changes)
