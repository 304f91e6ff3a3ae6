"""`--bytes` of `dim sample` and `dim export`: the most accuracy in one coded file."""

from pathlib import Path
from typing import Any

from dim.commands.arguments import SampleArguments
from dim.commands.subjects import device_of, real_data
from dim.config import ProtocolConfig, from_dict, to_dict
from dim.config.settings import require
from dim.errors import InputError
from dim.launch import launched
from dim.text import say, say_note

_RANKED = 50  # images per class that a policy ranks, where --ipc bounds nothing


def require_alone(parsed: Any, option: str, *others: str) -> None:
    """Refuse what makes no sense beside --bytes, and a place that is no coded file, before any work.

    Args:
        parsed: the arguments of the command.
        option: that says the format of a folder.
        others: options that have to have their defaults.

    Raises:
        InputError: naming the option.
    """
    from dim.budget import parse_bytes
    from dim.coding.container import SUFFIX
    from dim.outputs import require_writable

    parse_bytes(parsed.bytes)
    for name in (option, *others):
        usual = type(parsed).__dataclass_fields__[name].default
        require(getattr(parsed, name) == usual, name, getattr(parsed, name), f"{usual!r}, its default, beside --bytes")
    if launched()[1] > 1:
        raise InputError("candidates of --bytes are scored by one process: start it without a launcher")
    require(parsed.out.endswith(SUFFIX), "out", parsed.out, f"the name of a file that ends in {SUFFIX}, beside --bytes")
    for name, path in (("out", parsed.out), ("json", parsed.json)):
        if path is not None:
            require_writable(path, name)
    if Path(parsed.out).exists() and not parsed.overwrite:
        raise InputError(f"output {parsed.out} exists: name another file, or pass --overwrite to replace it")


def sample_bytes(parsed: SampleArguments, *, rank: Any, needs_note: bool) -> None:
    """`dim sample --bytes`.

    Args:
        parsed: its arguments, with the policies that a run's own experts make possible.
        rank: (parsed, data, teacher) -> the policies that were asked for.
        needs_note: whether these were chosen by the command.
    """
    require_alone(parsed, "format", "counts", "classes")

    from dim import budget
    from dim.hub import load_generator
    from dim.nets.generator import require_spread
    from dim.sampler import anchored, require_batch_size, sample_set
    from dim.teacher import with_soft_labels

    require_spread(parsed.spread)
    require_batch_size(parsed.batch_size)
    require(parsed.ipc is None or parsed.ipc >= 1, "ipc", parsed.ipc, "1 or more images per class")
    size, device = budget.parse_bytes(parsed.bytes), device_of(parsed.device)
    generator = load_generator(parsed.generator, device).configure(**parsed.sampler.given())
    data = real_data(generator, parsed.data_root, [parsed.generator], device)
    judge = _judge(parsed, generator.info, data, device)
    teacher, ranking, subject = parsed.teacher.load(data, device), None, generator
    most = parsed.ipc or (_RANKED if parsed.policy.steps else budget.MOST_IPC)
    if parsed.policy.steps:
        if needs_note:
            say_note(f"dim: images are refined with {parsed.teacher.folder}; for plain ones: --policy.steps without a value")
        ranking = rank(parsed, data, teacher).rank(generator, seed=parsed.seed, ipc=most)
        most = min(most, *map(len, ranking.numbers))
        subject = anchored(generator, ranking, ipc=most, spread=parsed.spread, seed=parsed.seed)
    drawing = {"seed": parsed.seed, "ranking": ranking, "batch_size": parsed.batch_size}
    draw = budget.nested(lambda ipc: sample_set(generator, ipc=ipc, **drawing))
    settings = {"most": most, "protocol": judge.protocol_for}
    name = "generator" if ranking is None else f"generator around {most} images per class"
    candidates = budget.generator_candidates(subject, size, name=name, steps=parsed.coding.calibration_steps)
    candidates += budget.image_candidates(draw, size, **settings)
    if teacher is not None and not parsed.hard:
        soft = budget.nested(lambda ipc: with_soft_labels(draw(ipc), teacher))
        candidates += budget.image_candidates(soft, size, **settings, labels="soft labels")
    _finish(parsed, candidates, judge, size)


def export_bytes(parsed: Any) -> None:
    """`dim export --bytes`: `parsed` are its arguments."""
    require_alone(parsed, "to", "card", "scores")

    from dim import budget
    from dim.data.synthetic import load_set

    size, device = budget.parse_bytes(parsed.bytes), device_of(parsed.device)
    subject = load_set(parsed.subject, device)
    data = real_data(subject, parsed.data_root, [parsed.subject], device)
    judge = _judge(parsed, subject.info, data, device)
    most = int(subject.labels.bincount(minlength=subject.spec.num_classes).min())
    if most < 1:
        raise InputError(f"{parsed.subject} lacks a class: --bytes chooses how many images of each class are stored")
    kind = "hard labels" if subject.soft is None else "soft labels"
    draw = budget.nested(lambda ipc: budget.first(subject, ipc))
    candidates = budget.image_candidates(draw, size, most=most, protocol=judge.protocol_for, labels=kind)
    _finish(parsed, candidates, judge, size)


def _judge(parsed: Any, info: dict[str, Any], data: Any, device: Any) -> Any:
    from dataclasses import replace

    from dim.budget import Judge

    if len(data.val) == 0:
        say_note("dim: the data has no validation part: candidates are scored on a tenth of the training part")
    protocol = from_dict(ProtocolConfig, info.get("protocol") or {})
    if parsed.coding.student is not None:
        protocol = replace(protocol, students=(parsed.coding.student,))
    return Judge(data, protocol, budget_ipc=parsed.coding.budget_ipc, device=device)


def _finish(parsed: Any, candidates: list[Any], judge: Any, size: int) -> None:
    """Choose, show, and write the file and the table."""
    from dim import budget
    from dim.coding.container import write
    from dim.io import write_document

    for candidate in candidates:
        if candidate.kind == "generator" and candidate.note:
            say_note(f"dim: {candidate.what}: {candidate.note}")
    chosen = budget.choose(candidates, judge, size)
    student = judge.protocol.students[0]
    say(f"Candidates of at most {size:,} bytes; accuracy of one {student}, {judge.steps:,} steps, on the validation part:")
    for line in budget.table(candidates, chosen):
        say(line)
    write(parsed.out, chosen.content)
    if parsed.json is not None:
        about = {"bytes": size, "chosen": chosen.what, "split": "val", "student": student, "steps": judge.steps}
        about["protocol"] = to_dict(judge.protocol)
        write_document(parsed.json, {"kind": "candidates", **about, "candidates": [one.to_dict() for one in candidates]})
    then = f"next: dim evaluate {parsed.out}" + (f" --ipc {judge.budget_ipc}" if chosen.kind == "generator" else "")
    say(f"{chosen.what}: {chosen.bytes:,} bytes in {parsed.out}  {then}")
