"""Choices: one file each, from which the command line, its help and the checks are made; code of one's own; options of others."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dim
from dim import config as configs
from dim.commands.cli import main
from dim.config import (
    CORESETS,
    DATASETS,
    DISTANCES,
    FORMATS,
    GENERATORS,
    POLICIES,
    POOLS,
    PROGRAMS,
    PURPOSES,
    STUDENTS,
    Choices,
    DataConfig,
    FitConfig,
    GeneratorConfig,
    MatchingConfig,
    PolicyConfig,
    PoolConfig,
    Section,
    StageConfig,
    TrainConfig,
    field_docs,
    from_dict,
    to_dict,
)
from dim.config.train import ADVERSARIES
from dim.data.real import RealData, load_data
from dim.emit.policy import Policy
from dim.errors import InputError
from dim.nets.generator import Generator
from dim.score.evaluate import Evaluator

ROOT = Path(dim.__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
PACKAGES = (ADVERSARIES, CORESETS, DATASETS, DISTANCES, FORMATS, GENERATORS, POLICIES, POOLS, PROGRAMS, PURPOSES, STUDENTS)
SHORT = [
    "--fit.experts",
    "0",
    "--stage-one.epochs",
    "0.1",
    "--stage-two.epochs",
    "0.1",
    "--fit.trackers",
    "--fit.log-steps",
    "1",
    "--pool.members",
    "1",
]


# --- one file, and nothing else -----------------------------------------------------------------------------------------------

_TOY = {
    "objectives/distances/toy.py": '''"""A toy distance."""

from dataclasses import dataclass

__all__ = ["Toy"]


@dataclass(frozen=True, kw_only=True)
class ToyOptions:
    """Of the toy."""

    strength: float = 2.0
    """How strong the toy is."""


class Toy:
    """The difference of the means."""

    Options = ToyOptions

    def __init__(self, config, spec, *, seed):
        self.strength = config.strength

    def __call__(self, real, generated, labels, step):
        return self.strength * (real.mean() - generated.mean()).square()
''',
    "emit/policies/backwards.py": '''"""A toy policy: the last candidate first."""

from dim.emit.policy import Step

__all__ = ["Backwards"]


class Backwards(Step):
    """See `Step`."""

    def __call__(self, candidates, left):
        return left.flip(0)
''',
    "data/formats/twice.py": '''"""A toy format: safetensors under another name."""

from dim.data.formats.safetensors import Safetensors

__all__ = ["Twice"]


class Twice(Safetensors):
    """The same."""
''',
}


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the package with three files more, and nothing else changed."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "dim", folder / "dim", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in _TOY.items():
        (folder / "dim" / name).write_text(text)
    return folder


def run(folder: Path, *arguments: str, fails: bool = False) -> str:
    """What `dim` prints, run from a folder whose modules come first."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", "dim.commands.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_a_new_distance_policy_and_format_are_one_file_each(extended):
    text = run(extended, "train", "--recipe", "digits-dim", "--matching.distance", "toy", "--help")
    assert "`toy`: A toy distance." in " ".join(text.replace("│", " ").split())
    assert "--matching.strength" in text
    assert "How strong the toy is." in text
    text = " ".join(run(extended, "sample", "--help-all").replace("│", " ").split())
    assert "`backwards`: A toy policy: the last candidate first." in text
    assert "`twice`: A toy format: safetensors under another name." in text
    toy = ["--matching.distance", "toy", "--matching.strength", "3", "--matching.weight", "1"]
    run(extended, "train", "--recipe", "digits-dim", *SHORT, *toy, "--stage-one.lr", "0.01", "--fit.ema", "0", "--out", "run")
    for name, steps in (("plain", []), ("turned", ["--policy.steps", "backwards", "--policy.candidates", "3"])):
        run(extended, "sample", "run", "--ipc", "3", *steps, "--format", "twice", "--out", name)
    code = (
        "import torch, dim; a, b = (dim.load_set(n).images.view(3, 10, -1) for n in ('plain', 'turned')); "
        "assert torch.equal(a.flip(0), b) and not torch.equal(a, b)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=extended, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- the tables -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", PACKAGES, ids=lambda choices: choices.what)
def test_every_file_is_a_choice_that_says_what_it_is(choices):
    assert len(choices.names()) >= 2
    for name in choices.names():
        assert choices.load(name).__doc__ or name in DATASETS.names()
        assert f"`{name}`: " in choices.explained()
        options = choices.options(name)
        if options is not None:
            assert field_docs(options).keys() >= vars(options).get("__annotations__", {}).keys()
    with pytest.raises(InputError, match=rf"unknown {choices.what} 'no-such'\. (Known|Did you mean)"):
        choices.load("no-such")


def test_an_option_that_several_choices_have_is_named_with_all_of_them():
    assert GENERATORS.owners("width") == {"diffusion": 64, "dim2023": 64, "gan": 64}
    assert GENERATORS.owners("no_such_option") == {}


SECTIONS = [
    kind for kind in vars(configs).values() if isinstance(kind, type) and issubclass(kind, Section) and kind is not Section
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_options_of_another_choice_are_refused_everywhere(section):
    """For every choice of every section, and every option that it does not have: changed, it is refused with its owner."""
    own_names = set(field_docs(section))
    several = isinstance(next(f for f in section.__dataclass_fields__.values() if f.name == section.selector).default, tuple)
    refused = 0
    for name in section.choices.names():
        chosen = {section.selector: (name,) if several else name}
        has = set(type(section(**chosen)).__dataclass_fields__)
        for other in section.choices.names():
            options = section.choices.options(other)
            for option in set(getattr(options, "__dataclass_fields__", {})) - has - own_names:
                default = section.choices.owners(option)[other]
                assert section(**chosen, **{option: default}) == section(**chosen), "files of earlier versions hold it"
                changed = object()
                with pytest.raises(InputError, match=rf"{section.prefix}{option} is .*: expected no such option") as caught:
                    section(**chosen, **{option: changed})
                assert "leave it out" in str(caught.value)
                assert "\n" not in str(caught.value)
                refused += 1
    assert refused > 0 or section is MatchingConfig, "distances have no options yet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --recipe digits-dim --generator.name gan --generator.label-scale 2", "generator.label_scale"),
        ("train --recipe digits-dim --pool.source fresh --pool.members 3", "pool.members"),
        ("train --recipe fashion-gan-small --adversarial.gradient-penalty 1", "adversarial.gradient_penalty"),
        ("train --recipe digits-dim --discriminator.blocks 2", "discriminator.blocks"),
        ("train --recipe digits-dim --flow.time-std 2", "flow.time_std"),
        ("train --recipe fashion-diffusion-small --discriminator.width 8", "discriminator.width"),
        ("train --recipe digits-dim --data-root there", "data.root"),
        ("experts --recipe digits-mtt-ipc1 --experts.rho 1", "experts.rho"),
        ("distill --recipe digits-mtt-ipc1 --trajectory.waypoints 3", "trajectory.waypoints"),
        ("distill --recipe digits-mtt-ipc1 --labels.lr 1", "labels.lr"),
        ("sample somewhere --ipc 1 --policy.keep 0.5", "policy.keep"),
        ("sample somewhere --ipc 1 --refine.by moments --refine.span 1 2", "refine.span"),
    ],
)
def test_options_without_effect_are_refused_on_the_command_line(arguments, message, tmp_path, capsys):
    assert main([*arguments.split(), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"dim: {message} is ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("option", ["--stage-one.epochs", "--matching.weight", "--path-matching.starts", "--protocol.lr"])
def test_numbers_are_finite(option, number, tmp_path, capsys):
    values = [number, "1"] if option.endswith("starts") else [number]
    assert main(["train", "--recipe", "digits-dim", option, *values, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_choice_on_the_command_line_starts_from_its_own_defaults(capsys):
    """What both have is kept: the recipe's width; what only the former had is left behind, also in sections that only it uses."""
    assert main(["train", "--recipe", "digits-dim", "--generator.name", "gan", "--generator.blocks", "2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert 'name = "gan"\nlatent_dim = 32\nwidth = 48\nblocks = 2' in text
    assert main(["train", "--recipe", "digits-dim", "--generator.name", "diffusion", "--dry-run"]) == 0
    assert 'loss = "relativistic"' in capsys.readouterr().out, "the recipe's loss is not used, so it is the default"


def test_files_of_earlier_versions_hold_the_options_of_all_choices():
    old = {"source": "fresh", "members": 10, "max_age": 1000, "experts": None, "together": 1, "upkeep_steps": 16}
    assert from_dict(PoolConfig, old) == PoolConfig(source="fresh", upkeep_steps=16)
    assert to_dict(PoolConfig(source="fresh")).keys().isdisjoint({"members", "max_age", "experts"})


# --- code of one's own ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_run(tmp_path_factory) -> Path:
    """A run made from the examples, by the command line, as docs/extend.md has it."""
    folder = tmp_path_factory.mktemp("own")
    for file in EXAMPLES.glob("*.py"):
        shutil.copy(file, folder)
    own = "--generator.name own_generator:TwoLayers --generator.hidden 24 --matching.distance own_distance:Largest"
    more = "--objectives own_objective:Brightness --pool.students own_student:hidden_layer:units=8"
    run_own(folder, "train", "--recipe", "digits-dim", *SHORT, *own.split(), *more.split(), "--out", "run")
    return folder


def run_own(folder: Path, *arguments: str, fails: bool = False) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dim.commands.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def test_examples_train_sample_and_score(own_run):
    metrics = (own_run / "run" / "metrics.jsonl").read_text()
    assert '"brightness"' in metrics
    code = ["--code", "own_generator:TwoLayers"]
    policy = ["--policy.steps", "own_policy:Brightest", "--policy.candidates", "6"]
    run_own(own_run, "sample", "run", *code, "--ipc", "3", *policy, "--format", "npz", "--out", "set")
    images = dim.load_set(own_run / "set").images.float().view(3, 10, -1).mean(2)
    assert bool((images[:-1] >= images[1:] - 0.5).all()), "brightest first, up to the rounding to 8 bits"
    students = ["--protocol.students", "own_student:hidden_layer:units=4", "--protocol.epochs", "3", "--seeds", "1"]
    assert "own_student:hidden_layer:units=4" in run_own(own_run, "evaluate", "set", *students)
    help_text = run_own(own_run, "train", "--generator.name", "own_generator:TwoLayers", "--help")
    assert "--generator.hidden" in help_text


def test_code_that_only_a_file_names_is_not_imported(own_run):
    error = run_own(own_run, "sample", "run", "--ipc", "1", "--out", "never", fails=True)
    assert "generator 'own_generator:TwoLayers' is code outside this package" in error
    assert "--code" in error
    assert error.count("\n") == 1
    error = run_own(own_run, "train", "--out", "run", "--resume", fails=True)
    assert "is code outside this package" in error
    recipe = own_run / "stranger.toml"
    recipe.write_text('[generator]\nname = "own_generator:TwoLayers"\n')
    assert "outside this package" in run_own(own_run, "train", "--recipe", "stranger.toml", "--out", "new", fails=True)
    named = ["--generator.name", "own_generator:TwoLayers", "--matching.distance", "own_distance:Largest"]
    named += ["--objectives", "own_objective:Brightness", "--pool.students", "own_student:hidden_layer:units=8"]
    run_own(own_run, "train", "--out", "run", "--resume", *named)


@pytest.mark.parametrize(
    "name", ["no_such_module:Name", "own_generator:NoSuchName", "own_generator:"], ids=["module", "attribute", "nothing"]
)
def test_names_that_cannot_be_imported_are_refused(own_run, name):
    error = run_own(own_run, "train", "--recipe", "digits-dim", "--generator.name", name, "--out", "new", fails=True)
    assert error.count("\n") == 1
    assert name in error


def test_examples_as_python_objects(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import own_distance
    import own_generator
    import own_objective
    import own_policy
    import own_student

    data: RealData = load_data(DataConfig())
    config = TrainConfig(
        generator=GeneratorConfig(name=own_generator.TwoLayers, hidden=16),
        matching=MatchingConfig(distance=own_distance.Largest, weight=1.0),
        pool=PoolConfig(students=(own_student.hidden_layer,), members=1),
        objectives=(own_objective.Brightness,),
        stage_one=StageConfig(epochs=0.05),
        stage_two=StageConfig(epochs=0.1),
        fit=FitConfig(trackers=(), device="cpu"),
    )
    assert from_dict(TrainConfig, to_dict(config)) == config
    generator = dim.load_generator(dim.fit(config, data, tmp_path / "run"), code=[own_generator.TwoLayers])
    assert generator.first.out_features == 16
    ranking = Policy(PolicyConfig(steps=(own_policy.Brightest,), candidates=4)).rank(generator)
    subject = dim.sample_set(generator, ipc=2, ranking=ranking)
    protocol = configs.ProtocolConfig(students=(own_student.hidden_layer,), epochs=2)
    (score,) = Evaluator(data, protocol, seeds=1).fixed(subject)
    assert score.student == "own_student:hidden_layer"
    with pytest.raises(InputError, match=r"generator\.hidden is 0: expected at least 1"):
        GeneratorConfig(name=own_generator.TwoLayers, hidden=0)


def test_an_object_that_is_defined_again_brings_its_new_options():
    """As in a notebook, where a class is edited and its cell run again."""

    def define(default):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Options:
            size: int = default

        return type("Own", (Generator,), {"Options": Options})

    assert [GeneratorConfig(name=define(size)).size for size in (3, 4)] == [3, 4]
    with pytest.raises(InputError, match="generator is 3: expected a name, or a class or function of your own"):
        GeneratorConfig(name=3)


def test_names_that_no_one_admitted_are_not_imported(monkeypatch):
    monkeypatch.setattr(Choices, "tables", [])  # of which this table becomes one
    table = Choices("thing", "dim.nets.generators")
    with pytest.raises(InputError, match="code that only a file names is not imported"):
        table.load("os:system")
