"""What commands choose where nothing is said: settings for somebody's own images and a time, and how a run's sets are made."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dim.commands.arguments import SampleArguments, TrainArguments
from dim.commands.looking import own_data
from dim.commands.parsing import given_options, parse_known, stray, values_of
from dim.commands.subjects import device_of
from dim.config import RecordConfig, TrainConfig, to_toml
from dim.config.data import located
from dim.errors import InputError
from dim.launch import launched
from dim.text import say, say_note

_MINUTES = 30.0


class Automatic:
    """Settings that are chosen for the data, the device and a time.

    Attributes:
        config: what was chosen, without lengths.
        arguments: those of the command, with what they leave open.
        data: the real data, if `fill` had to read them.
    """

    def __init__(self, parsed: TrainArguments, arguments: list[str]) -> None:
        from dim.data.look import look
        from dim.runs.automatic import choose, too_small

        self._began, self._minutes = time.monotonic(), parsed.minutes or _MINUTES
        self.arguments, self.data = arguments, None
        self._given = given_options(arguments)
        if launched()[1] > 1:
            raise InputError("settings are chosen for one process: print them with --dry-run, and launch with --recipe FILE.toml")
        data = located(own_data(parsed.folder, parsed.data, arguments))
        found = look(data)
        for line in found.lines():
            say_note(f"dim: {line}")
        choice = choose(found, data, minutes=self._minutes, device=device_of(parsed.fit.device))
        self.config, self._why = choice.config, choice.reasons
        if warning := too_small(found):
            say(f"dim: {warning}", sys.stderr)

    @classmethod
    def asked(cls, arguments: Sequence[str]) -> "Automatic | None":
        """The settings for a command that names a folder, or a time, and no recipe; None for another one.

        Raises:
            InputError: if the data cannot be read.
        """
        if {"-h", "--help"} & set(arguments) or values_of(arguments, "--recipe"):
            return None
        parsed, unknown = parse_known(TrainArguments, arguments, "train")
        if unknown or (parsed.folder is None and parsed.minutes is None):
            return None  # what is unknown is refused where the options are those of the choices that are made
        out = parsed.out or (f"runs/{Path(parsed.folder).resolve().name}" if parsed.folder is not None else None)
        words = list(arguments) if parsed.out or out is None else [*arguments, "--out", out]
        if parsed.resume and out is not None and (Path(out) / "run.json").is_file():
            return None if parsed.folder is None else _Resumed(parsed, words, out)
        return cls(parsed, words)

    def fill(self, config: TrainConfig) -> TrainConfig:
        """Read the data, measure, give the stages the lengths that are open, and say what was chosen and how long it takes."""
        from dim.data.real import load_data
        from dim.runs.accelerator import make_accelerator
        from dim.runs.automatic import LENGTHS, fill

        accelerator = make_accelerator(replace(config, fit=replace(config.fit, trackers=())), Path())
        self.data = load_data(config.data, accelerator.device)
        left = 60 * self._minutes - (time.monotonic() - self._began)
        config, seconds = fill(config, self.data, accelerator, seconds=left, keep=self._given & set(LENGTHS))
        for line in to_toml(config, over=TrainConfig(), why=self._why).splitlines():
            say_note(f"dim: {line}" if line else "dim:")
        say_note(f"dim: {(seconds + time.monotonic() - self._began) / 60:.1f} minutes in all, {seconds / 60:.1f} from now")
        return config


class _Resumed(Automatic):
    """A run on somebody's own folder that goes on with the settings that it has."""

    def __init__(self, parsed: TrainArguments, arguments: list[str], out: str) -> None:
        from dim.run_folder import load_run_config

        config = load_run_config(out)
        root = own_data(parsed.folder, parsed.data, arguments).root
        self.config, self.arguments, self.data = replace(config, data=replace(config.data, root=root)), arguments, None

    def fill(self, config: TrainConfig) -> TrainConfig:
        """See `Automatic.fill`: nothing is left open."""
        return config


def require_recipe_alone(parsed: TrainArguments) -> None:
    """Refuse a folder or a time beside a recipe, which has both."""
    if parsed.recipe is None or (parsed.folder is None and parsed.minutes is None):
        return
    if parsed.folder is not None and not Path(parsed.folder).is_dir():
        raise InputError(stray(parsed.folder, "train"))
    what = f"a folder, {parsed.folder!r}," if parsed.folder is not None else "--minutes"
    remedy = "leave one of them out; a recipe reads your folder with --dataset folder --data-root DIR --resolution N"
    raise InputError(f"{what} and a recipe, {parsed.recipe!r}: {remedy}")


def say_if_part_is_refined(parsed: SampleArguments, ipc: int) -> None:
    """Say so where refinement ends before the last of so many images of a class."""
    last = parsed.refine.blocks[-1]
    if ipc > last and parsed.policy.refines:
        remedy = f"--refine.blocks {' '.join(map(str, (*parsed.refine.blocks, ipc)))} refines all"
        say_note(f"dim: the first {last} images of a class are refined, and the others are not; {remedy}")


def with_own_experts(parsed: SampleArguments, arguments: Sequence[str]) -> SampleArguments:
    """The arguments of `dim sample`, with the policies that a run's own experts make possible, where none is named."""
    from dim.augment import without_flips
    from dim.run_folder import load_run_config
    from dim.runs.beside import FOLDER
    from dim.trajectory.store import LAYOUT

    experts = Path(parsed.generator) / FOLDER
    asked = any(word.partition("=")[0].startswith(("--policy.steps", "--teacher.")) for word in arguments)
    if asked or not (experts / LAYOUT).is_file():
        return parsed
    policy, refine = replace(parsed.policy, steps=("refined",)), parsed.refine
    if not values_of(arguments, "--refine.augment") and hasattr(refine, "augment"):
        seen = load_run_config(experts, RecordConfig, "experts").experts.augment
        if "flip" not in seen:  # mirrored images are none of theirs
            refine = replace(refine, augment=without_flips(refine.augment))
    return replace(parsed, policy=policy, refine=refine, teacher=replace(parsed.teacher, folder=str(experts)), hard=True)
