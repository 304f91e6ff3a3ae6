"""Options: whatever a command line holds, it is taken or refused in one line, before any work; a dry run prints a recipe."""

import dataclasses
import random
import shlex
import typing
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dim.commands import parsing
from dim.commands.cli import COMMANDS, main
from dim.commands.parsing import parse
from dim.recipes.load import load_recipe, recipe_names
from dim.text import LINE

TRAJECTORY = [name for name in recipe_names() if hasattr(load_recipe(name), "trajectory")]
RECIPES = {
    "train": [name for name in recipe_names() if name not in TRAJECTORY],
    "experts": TRAJECTORY,
    "distill": TRAJECTORY,
}
BASE = {
    "data": ["./nowhere"],
    "train": ["--recipe", "digits-dim"],
    "experts": ["--recipe", "digits-mtt-ipc1"],
    "distill": ["--recipe", "digits-mtt-ipc1"],
    "sample": ["./nowhere", "--ipc", "1", "--out", "out"],
    "evaluate": ["./nowhere"],
    "compare": ["./nowhere"],
    "coverage": ["./nowhere"],
    "audit": ["./nowhere"],
    "report": ["./nowhere"],
    "verify": ["./nowhere"],
    "recipes": ["digits-dim"],
    "completion": ["bash"],
    "import": ["./nowhere.pt", "--dataset", "digits", "--normalised-by", "none", "--out", "out"],
    "export": ["./nowhere", "--to", "npz", "--out", "out"],
}
TEXTS = [
    *("", " ", "-", "--", "=", "''", "x", "none", "None", "true", "False", "{}", "[]", "1,2", "x" * 400),
    *("inf", "-inf", "nan", "1e400", "-1", "0", "1", "2", "0.5", "1e-300", "1e300", "1000000000", "9" * 25, "9" * 5000),
    *("1_000", "0x10", "+1", ".5", "٣", "３", "é±", "猫", "\udcff", "\x1b[31mred", "a\nb", "a\tb", "\u202e", "\x7f"),
    *("a[b]c", "[/red]", "$x^{$", "<b>", "cpu", "cuda:99", "meta", "tpu", "wandb", "tensorboard", "all", "auto", "on", "bf16"),
    *("convnet", "convnet:depth=0", "convnet:depth=99999", "convnet:width=9999999999", "convnet:width=1,width=2", "convnet:x=1"),
    *("convnet:norm=x", "timm:", "timm:nothing", "resnet18:width=0", "crop|flip", "crop_flip", "crop_flip|color", "|", "_"),
    *("os:path", "os:getcwd", "json:dumps", "builtins:dict", "dim.errors:InputError", "pathlib:Path", "a.b:C", ".:x", "a:b:c"),
    *("gan", "diffusion", "pipeline", "dim2023", "folder", "digits", "experts", "fresh", "refined", "graded", "moments", "gsam"),
    *("3=1", "3=1 3=2", "1e3", "random", "oracle", "latents", "generator", "png", "a/b", "hub:a", "hub:a/b", "/dev/null"),
]


@cache
def options(command: str) -> list[str]:
    """All options of a command, as its recipe makes them."""
    arguments = BASE[command]
    if command in RECIPES:
        base = load_recipe(arguments[1])
        cls = COMMANDS[command][1]
        names = {field.name for field in dataclasses.fields(cls)} & {field.name for field in dataclasses.fields(base)}
        default = cls(**{name: getattr(base, name) for name in names if (command, name) != ("distill", "experts")})
        parsed = parse(cls, [], command, default=default)
    else:
        parsed = parse(COMMANDS[command][1], arguments, command)
    return parsing._option_names(type(parsed), parsed)


@st.composite
def command_lines(draw):
    """A command with some of its options and values that may be nonsense."""
    command = draw(st.sampled_from(list(COMMANDS)))
    arguments = list(BASE[command])
    for _ in range(draw(st.integers(1, 3))):
        option = draw(st.sampled_from([*options(command), "--no-such-option"]))
        values = draw(st.lists(st.one_of(st.sampled_from(TEXTS), st.text(max_size=8)), max_size=2))
        if values and draw(st.booleans()):
            arguments.append(f"{option}={values.pop(0)}")
        else:
            arguments.append(option)
        arguments += values
    return [command, *arguments]


@pytest.fixture(scope="module", autouse=True)
def empty_folder(tmp_path_factory):
    """Nothing is there, nothing is asked of the Hub, and nothing may be written."""
    folder = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("DIM_DATA_ROOT", raising=False)
        patch.setattr("dim.chunks._free_memory", lambda: 2.0**34)  # whatever else the machine does
        for command in COMMANDS:  # now, as no strategy may import what asks for random numbers
            options(command)
        yield
    assert list(folder.iterdir()) == []


def judged(arguments, capsys) -> tuple[int, str, str]:
    """The status of a command, and what it printed; no traceback, and no more than one line of it."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as stop:  # --help
        status = stop.code or 0
    output, errors = capsys.readouterr()
    assert status in (0, 2), (arguments, errors)
    if status == 2:
        assert errors.startswith("dim: "), arguments
        assert errors.endswith("\n"), arguments
        message = errors.removeprefix("dim: ").removesuffix("\n")
        assert message.isprintable(), arguments
        assert len(message) <= LINE, arguments
        assert output == "", arguments
    return status, output, errors


@settings(max_examples=500)
@given(command_lines())
@example(["coverage", "./nowhere", ""])
@example(["train", "--recipe", "digits-dim", "--fit.tf32", ""])
@example(["train", "--recipe", "digits-dim", "--generator.name", "dim.errors:InputError"])
@example(["sample", "./nowhere", "--out", "out", "--ipc", "1", "--policy.steps", "json:dumps"])
@example(["sample", "./nowhere", "--out", "out", "--ipc", "1", "--refine.lr", "x" * 400])
def test_any_command_line_is_taken_or_refused_in_one_line(capsys, arguments):
    dry = ["--dry-run"] * (arguments[0] in RECIPES)
    judged([*arguments, *dry], capsys)


# --- a dry run ------------------------------------------------------------------------------------------------------------------


def values_of(hint: typing.Any, default: typing.Any, source: random.Random) -> list[str]:
    """Values that fit an option's type, of which most are in its range."""
    if isinstance(default, bool):
        return []
    if typing.get_origin(hint) is typing.Literal:
        return [str(source.choice(typing.get_args(hint)))]
    if isinstance(default, tuple):
        size = len(default) if default and isinstance(default[0], float) else source.randint(0, 2)
        return [text for _ in range(size) for text in values_of(None, default[0] if default else "", source)]
    if isinstance(default, int):
        return [str(source.choice([default, default + 1, 1, 2, 4, 8, 0, 10**6, 10**12]))]
    if isinstance(default, float):
        return [repr(source.choice([default, default / 3, 2 * default, 0.0, 0.25, 1.0, 1e-30, 3e20, 1e17]))]
    texts = ["", "crop", "color_crop", "convnet:width=3", "resnet10", "a b", 'q"uo\\te', "é\x7f\u202e\x85\t\n", "x" * 50, "none"]
    return [source.choice([str(default), *texts])]


@st.composite
def changed_recipes(draw):
    """A command with a recipe and options that fit it, or nearly."""
    command = draw(st.sampled_from(sorted(RECIPES)))
    recipe = draw(st.sampled_from(RECIPES[command]))
    base = load_recipe(recipe)
    source = draw(st.randoms(use_true_random=False))
    arguments = []
    for _ in range(draw(st.integers(0, 3))):
        section = source.choice([field.name for field in dataclasses.fields(base)])
        value = getattr(base, section)
        if command == "distill" and section == "experts":
            continue
        if not dataclasses.is_dataclass(value):
            field, name, owner = section, section, base
        else:
            field, owner = source.choice([field.name for field in dataclasses.fields(value)]), value
            name = f"{section}.{field}"
        option = f"--{name}".replace("_", "-")
        if isinstance(getattr(owner, field), bool):
            option = source.choice([option, f"--{name.rpartition('.')[0]}{'.' * ('.' in name)}no-{field}".replace("_", "-")])
        if option not in arguments:
            hint = typing.get_type_hints(type(owner)).get(field)
            arguments += [option, *values_of(hint, getattr(owner, field), source)]
    return [command, "--recipe", recipe, *arguments]


@settings(max_examples=200)
@given(changed_recipes())
def test_a_dry_run_prints_a_recipe_that_gives_the_same_configuration(capsys, monkeypatch, tmp_path, arguments):
    configurations, to_toml = [], parsing.to_toml
    with monkeypatch.context() as patch:
        patch.setattr(parsing, "to_toml", lambda config: configurations.append(config) or to_toml(config))
        status, output, _ = judged([*arguments, "--dry-run"], capsys)
        if status == 0:
            (tmp_path / "again.toml").write_text(output, encoding="utf-8")
            again = [arguments[0], "--recipe", str(tmp_path / "again.toml"), "--dry-run"]
            assert judged(again, capsys) == (0, output, ""), arguments
            assert configurations[0] == configurations[1]


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_accepted_by_a_dry_run(name, capsys):
    """Those of data of their own size need one."""
    for command in [command for command, recipes in RECIPES.items() if name in recipes]:
        assert judged([command, "--recipe", name, "--dry-run"], capsys)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        # Numbers that are none, of options in and outside recipes.
        ("sample ./nowhere --ipc 1 --out out --spread inf", "spread is inf: expected a finite number"),
        ("sample ./nowhere --ipc 1 --out out --teacher.temperature nan", "teacher.temperature is nan: expected a finite number"),
        ("sample ./nowhere --ipc 1 --out out --sampler.guidance=-inf", "sampler.guidance is -inf: expected a finite number"),
        ("sample ./nowhere --ipc 1 --out out --policy.steps filtered --policy.keep nan", "policy.keep is nan: expected"),
        ("sample ./nowhere --ipc nan --out out", "--ipc is 'nan': expected none or int"),
        ("evaluate ./nowhere --teacher.age inf", "teacher.age is inf: expected a finite number"),
        ("evaluate ./nowhere --protocol.lr nan", "protocol.lr is nan: expected a positive number"),
        ("train --fit.checkpoint-minutes inf", "fit.checkpoint_minutes is inf: expected a finite number"),
        ("train --stage-one.betas 0.5 nan", "betas is (0.5, nan): expected two numbers in [0, 1)"),
        ("experts --experts.every nan", "experts.every is nan: expected"),
        ("distill --images.lr 1e999", "images.lr is inf: expected a finite number"),
        (f"train --seed {10**30}", "fit.seed is 1.000e+30: expected a whole number of at most 9223372036854775807"),
        # Options, devices and trackers that there are not.
        ("train --fit.tf32 ''", "'' belongs to no option of 'dim train'"),
        ("train stray=1", "'stray=1' belongs to no option of 'dim train'"),
        ("train --device meta", "fit.device is 'meta': expected cpu, cuda or mps"),
        ("experts --experts.device meta", "experts.device is 'meta': expected cpu, cuda or mps"),
        ("distill --device tpu:x", "distill.device is 'tpu:x': expected cpu, cuda or mps"),
        ("evaluate ./nowhere --device meta", "device 'meta' cannot be used"),
        ("train --fit.trackers x", "fit.trackers is 'x': expected a tracker of accelerate. Known: aim,"),
        ("train --fit.trackers tensorbord", "Did you mean 'tensorboard'?"),
        # The same thing twice.
        ("train --recipe digits-dim", "--recipe is given twice: expected it once"),
        ("train --seed 3 --fit.seed 4", "--seed and --fit.seed are one option: expected it once"),
        ("train --fit.tf32 --fit.no-tf32", "--fit.tf32 and --fit.no-tf32 are one option: expected it once"),
        ("train --stage-one.lr 1 --stage_one.lr=2", "--stage-one.lr is given twice"),
        ("evaluate ./nowhere --ipc 1 10 1", "ipc is 1: expected each value once"),
        ("evaluate ./nowhere --controls random random", "controls is 'random': expected each value once"),
        ("evaluate ./nowhere --students convnet convnet", "expected each architecture once"),
        ("sample ./nowhere --ipc 1 --classes 3 3 --out out", "classes is '3': expected each value once"),
        # Students.
        ("train --students convnet:depth=0", "option 'depth' of student 'convnet' is '0': expected a whole number, 1 or more"),
        ("train --students convnet:depth=4", "depth is 4: 8x8 images allow at most 3 poolings"),
        ("train --students convnet:depth=65,pool=none", "depth is 65: expected 1 to 64 blocks"),
        ("train --students convnet:width=0", "option 'width' of student 'convnet' is '0'"),
        (f"train --students convnet:width={'9' * 5000}", "option 'width' of student 'convnet' is '999"),
        ("train --students convnet:width=99999", "student 'convnet:width=99999' has 179,999,200,000 weights"),
        ("train --students vgg11:width=999999999", "has more weights than can be counted: make it smaller"),
        ("train --students convnet:norm=x", "norm is 'x': expected batch,"),
        ("train --students convnet:pool=x", "pool is 'x': expected avg, max or none"),
        ("train --students convnet:width=3,width=4", "has option 'width' twice"),
        ("train --students timm:nothing", "unknown timm model 'nothing'"),
        ("train --pool.students convnet:depth=9", "depth is 9: 8x8 images"),
        ("experts --student resnet18", "keeps running statistics"),
        ("experts --student convnet:depth=9", "depth is 9: 8x8 images"),
        ("distill --protocol.students convnet:norm=x", "norm is 'x'"),
        # Networks and batches that memory cannot hold, before it is asked for them.
        ("train --generator.width 99999999", "generator 'dim2023' has 839,999,"),
        ("train --generator.name gan --generator.blocks 1000000000", "generator.blocks is 1000000000: expected 1 to 64"),
        ("train --discriminator.width 99999999", "the discriminator has"),
        ("train --stage-one.batch-size 1000000000000", "stage_one.batch_size stands for 1,000,000,000,000 images at a time"),
        ("experts --experts.batch-size 1000000000000", "experts.batch_size stands for 1,000,000,000,000 images"),
        ("experts --experts.count 1000000000000000000", "experts.count is 1000000000000000000: expected fewer experts"),
        ("experts --experts.epochs 1e300", "experts.epochs is 1e+300: expected at most 1,000,000 times experts.every"),
        ("distill --images.ipc 1000000000", "images.ipc stands for 10,000,000,000 images at a time"),
        ("evaluate ./nowhere --seeds 1000000000", "seeds is 1000000000: expected 1 to 10,000"),
        # What would be refused later.
        ("train --stage-one.epochs 0 --stage-two.epochs 0", "stage_one.epochs and stage_two.epochs are 0: no step"),
        ("train --stage-one.epochs 1e300", "epochs is 1e+300: expected 0 to 1e+18"),
        ("train --pool.source experts", "pool.experts is not given"),
        ("train --path-matching.weight 1", "path_matching.experts is not given"),
        ("train --matching.augment crops", "unknown augmentation 'crops'"),
        ("train --path-matching.augment crops", "unknown augmentation 'crops'"),
        ("train --generator.name pipeline", "generator.pretrained is None"),
        ("train --generator.name gan --resolution 10", "choose a --resolution that is a multiple of 4"),
        ("train --dataset folder", "data set 'folder' needs --resolution N (pixels)"),
        ("train --dataset webdataset", "data set 'webdataset' needs --resolution N (pixels)"),
        ("experts --experts.waypoints 500", "waypoints is 500: expected 2 to"),
        ("experts --experts.augment crops", "unknown augmentation 'crops'"),
        ("experts --zca --resolution 128", "ZCA whitening of 128x128 images"),
        ("distill --trajectory.max-start 0", "window 0.0 to 0.0"),
        ("distill --images.space latents", "images.space is 'latents' and no generator was given"),
        ("distill --generator runs/a", "images.space is 'pixels' and a generator was given"),
        # Names of files.
        ("coverage ./nowhere --panel x.jpg", "panel is 'x.jpg': expected a name that ends in .png, which is what is written"),
        ("compare ./nowhere --picture x.pdf", "picture is 'x.pdf': expected a name that ends in .png"),
        ("evaluate ./nowhere --json ''", "--json is '': expected a value; leave the option out for none"),
        ("train --data-root ''", "--data.root is '': expected a value"),
        ("train --out ''", "--out is '': expected a value"),
        # Code of the wrong kind.
        ("train --generator.name dim.errors:InputError", "is no generator: expected a subclass of dim.nets.generator.Generator"),
        ("train --matching.distance json:dumps", "'json:dumps' is no distance: expected"),
        ("train --adversarial.loss json:dumps", "'json:dumps' is no adversarial loss: expected"),
        ("train --pool.source json:dumps", "'json:dumps' is no pool: expected a subclass of dim.pool.ModelPool"),
        ("train --objectives pathlib:Path", "'pathlib:Path' is no objective: expected"),
        ("train --students os:getcwd", "'os:getcwd' is no student: expected"),
        (
            "train --students json:dumps",
            "'json:dumps' is no student: expected a class or function called as Name(spec=...)",
        ),
        ("train --students pathlib:nothing", "'pathlib:nothing' cannot be imported"),
        ("train --dataset os:getcwd", "'os:getcwd' is no data set: expected"),
        ("train --code os:getcwd", "'os:getcwd', which is of no kind that can be chosen"),
        ("sample ./nowhere --ipc 1 --out out --policy.steps json:dumps", "'json:dumps' is no policy: expected a subclass of"),
        (
            "sample ./nowhere --ipc 1 --out out --refine.by os:getcwd --policy.steps refined",
            "'os:getcwd' is no purpose of refinement",
        ),
        ("sample ./nowhere --ipc 1 --out out --format json:dumps", "'json:dumps' is no format: expected a subclass of"),
        ("evaluate ./nowhere --controls json:dumps", "'json:dumps' is no coreset: expected a subclass of"),
    ],
)
def test_nonsense_is_refused_before_any_work(arguments, said, capsys):
    """The same with and without a dry run, which would print it otherwise."""
    command, *more = shlex.split(arguments)
    given = [command, *([*BASE[command], *more] if command in RECIPES else more)]
    for dry in [["--dry-run"], ["--out", "out"]] if command in RECIPES and "--out" not in more else [[]]:
        status, _, errors = judged([*given, *dry], capsys)
        assert status == 2
        assert said in errors
