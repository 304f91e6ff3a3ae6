"""`dim audit`: what a set or a generator reveals of the images that it was made from."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from dim.commands.arguments import MOST_SEEDS, SamplerArguments, require_distinct
from dim.commands.pages import write_page
from dim.commands.parsing import parse, parse_known, subjects_first
from dim.commands.subjects import device_of, load_subjects, root_of_runs
from dim.config import ProtocolConfig, Settings, from_dict
from dim.config.settings import require
from dim.errors import InputError
from dim.text import say, say_note


@dataclass(frozen=True, kw_only=True)
class AuditArguments(Settings):
    """Attack a set or a generator, and students on it: can the images that it was made from be told from others?"""

    subject: tyro.conf.Positional[str | None] = None
    """A set, a run, or a generator. Made with --data.fraction 0.5, it leaves as many images out as it uses."""
    references: tuple[str, ...] = ()
    """Sets or generators made the same way from other parts of the data (another --data.fraction-seed), for a stronger attack:
    four or more."""
    halves: int = 8
    """Students on random halves of the real images: references where there are no others, and for the controls. Even; 0: none."""
    seeds: int = 1
    """Students of the subject that are attacked together, with seeds 0, 1, ..."""
    ipc: int = 10
    """For generators: images per class of the set that students are trained on, or that the budget of their stream stands for."""
    track: tuple[Literal["stream", "fixed"], ...] = ("stream",)
    """For generators: students on a stream, on a set drawn on the spot, or both."""
    samples: int = 5000
    """For generators: images that are drawn to look for near ones, balanced."""
    features: str = "auto"
    """What distances are taken in, beside pixels. `auto`: a classifier trained on a random half of the real images; otherwise a
    .safetensors file with the state of torchvision's inception_v3."""
    sampler: SamplerArguments = dataclasses.field(default_factory=SamplerArguments)
    """For generators: how images are made."""
    data_root: str | None = None
    """Where the real data lies. Default: the environment variable DIM_DATA_ROOT, or where the run had it."""
    device: str | None = None
    """cpu, cuda, mps. Default: a GPU if there is one."""
    code: tuple[str, ...] = ()
    """Your own code that the subject was made with, as package.module:Name. Code that only a file names is never imported."""
    json: str | None = None
    """Also write the result to this file. It is always left as audit.json in the subject's folder, for `dim report` and cards."""
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    """How students are trained. Default: what the subject carries."""

    def __post_init__(self) -> None:
        require(1 <= self.seeds <= MOST_SEEDS, "seeds", self.seeds, f"1 to {MOST_SEEDS:,}")
        fits = 0 <= self.halves <= MOST_SEEDS and self.halves % 2 == 0
        require(fits, "halves", self.halves, "an even number, as every second half is what another leaves out, or 0")
        for name in ("ipc", "samples"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(len(self.track) > 0, "track", self.track, "stream, fixed, or both")
        for name in ("references", "track"):
            require_distinct(name, getattr(self, name))


def audit(arguments: Sequence[str]) -> None:
    """`dim audit`."""
    arguments = subjects_first(arguments)
    first, _ = parse_known(AuditArguments, arguments, "audit")
    if first.subject is None:
        raise InputError("nothing to audit: name a set, a run or a generator")

    from dim.audit.audit import Audit
    from dim.audit.candidates import candidates_of
    from dim.data.origin import usual_root
    from dim.io import write_document
    from dim.outputs import require_writable
    from dim.run_folder import RUN
    from dim.score.privacy import FILE
    from dim.score.report import print_audit

    if first.json is not None:
        require_writable(first.json, "json")
    device = device_of(first.device)
    (subject,) = load_subjects([first.subject], device, first.sampler).values()
    loaded = load_subjects(first.references, device, first.sampler)
    carried = from_dict(ProtocolConfig, subject.info.get("protocol") or {})
    parsed = parse(AuditArguments, arguments, "audit", default=AuditArguments(protocol=carried))
    root = parsed.data_root
    if root is None and subject.info.get("data"):
        of_run = root_of_runs((parsed.subject, *parsed.references))
        root = usual_root(subject.info["data"]["dataset"], subject.spec.fingerprint, of_run)
    candidates = candidates_of(subject.info, subject.spec.fingerprint, root, device)
    options = {name: getattr(parsed, name) for name in ("seeds", "halves", "ipc", "samples", "features")}
    references = {name: (one, _members(candidates, subject, one, name)) for name, one in loaded.items()}
    options |= {"tracks": parsed.track, "references": references, "device": device}
    options["report"] = lambda line: say_note(f"dim: {line}")
    result = Audit(candidates, parsed.protocol, **options).run(subject, parsed.subject)
    print_audit(result)
    if parsed.json is not None:
        write_document(parsed.json, result.to_dict())
    folder = Path(parsed.subject)
    if folder.is_dir():
        write_document(folder / FILE, result.to_dict())
    if (folder / RUN).is_file() and (page := write_page(folder, candidates.part(candidates.member))):
        say(page)


def _members(candidates: Any, subject: Any, reference: Any, name: str) -> Any:
    """Which candidates a reference was made with, if it is one for the subject."""
    from dim.audit.candidates import data_settings, require_like

    require_like(data_settings(subject.info, "the subject"), data_settings(reference.info, name), name)
    return candidates.members_of(reference.info, reference.spec.fingerprint, name)
