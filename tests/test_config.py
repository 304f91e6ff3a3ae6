"""Configuration: recipes, TOML, and refusals that name the remedy."""

import dataclasses
import json
import tomllib
import typing

import pytest

import dim.config
from dim.config import (
    DataConfig,
    ExpertsConfig,
    GeneratorConfig,
    PoolConfig,
    ProtocolConfig,
    RecordConfig,
    StageConfig,
    TrainConfig,
    TrajectoryConfig,
    TrajectoryRecipe,
    from_dict,
    to_dict,
    to_toml,
)
from dim.errors import InputError
from dim.nets.student import build_student, check_protocol, parse_student
from dim.objectives.trajectory import window_of
from dim.recipes.load import load_recipe, load_recipe_for, recipe_names
from dim.trajectory.store import waypoint_moments

TRAJECTORY = [name for name in recipe_names() if isinstance(load_recipe(name), TrajectoryRecipe)]
GENERATOR = [name for name in recipe_names() if name not in TRAJECTORY]


def test_the_demo_recipe_is_there():
    assert {"digits-dim", "cifar10-dim2023"} <= set(GENERATOR)
    assert {"digits-mtt-ipc1", "cifar10-mtt-ipc1", "cifar10-tesla-ipc1", "cifar10-datm-ipc10", "cifar10-mct-ipc1"} <= set(
        TRAJECTORY
    )


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_toml_and_json(name):
    config = load_recipe(name)
    for text in (config.about.title, config.about.source, config.about.expect):
        assert text
        assert text == text.strip()
    assert "\n" not in config.about.title
    assert from_dict(type(config), tomllib.loads(to_toml(config))) == config
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config
    for student in (*(config.pool.students if name in GENERATOR else (config.student,)), *config.protocol.students):
        parse_student(student)


# Height and width, channels, and training images per class.
_DATA = {
    "digits": (8, 1, 129),
    "mnist": (28, 1, 4879),
    "fashion-mnist": (28, 1, 5400),
    "cifar10": (32, 3, 5000),
    "cifar100": (32, 3, 500),
    "tiny-imagenet": (64, 3, 500),
}


@pytest.mark.parametrize("name", TRAJECTORY)
def test_every_trajectory_recipe_fits_together(name, spec):
    """Whatever would be refused after hours of recording is wrong in a recipe."""
    config = load_recipe(name)
    size, channels, most = _DATA.get(config.data.dataset, (config.data.resolution, 3, 1000))
    seen = spec(channels, size, 10)
    build_student(config.student, seen, seed=0)
    check_protocol(config.protocol, seen)
    for augment in (config.experts.augment, config.trajectory.augment):
        check_protocol(dataclasses.replace(config.protocol, augment=augment), seen)
    last = round(config.experts.epochs / config.experts.every)
    window_of(config.trajectory).require_inside(last)
    assert config.images.ipc <= most
    assert config.images.ipc == int(name.removesuffix("-cpu").rpartition("-ipc")[2])
    assert not config.zca or channels * size * size <= 12288
    assert config.trajectory.path == ("convex" if config.experts.waypoints else "recorded")
    assert config.trajectory.continuous or not config.experts.waypoints
    if config.experts.waypoints:
        waypoint_moments(last, config.experts.waypoints, smooth=config.experts.smooth)
        assert config.trajectory.smooth == config.experts.smooth


@pytest.mark.parametrize("method", ["mtt", "tesla", "datm", "mct"])
def test_recipes_have_what_defines_their_method(method):
    named = {name: load_recipe(name) for name in TRAJECTORY if method in name}
    assert named
    for name, config in named.items():
        assert (config.labels.kind == "learned") == (method == "datm")
        assert (config.images.init == "confident" or getattr(config.labels, "init", None) == "one") == (method == "datm")
        assert (config.experts.optimizer == "gsam") == (method == "datm")
        published = "as published" in config.about.title or name.endswith("-cpu")
        assert (config.trajectory.gradient == "frozen") == (method == "tesla" or (method == "mct" and published))
        assert (config.experts.waypoints > 0) == (method == "mct")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_for_the_wrong_command_is_refused(name):
    right, wrong = (("experts", "distill"), ("train",)) if name in TRAJECTORY else (("train",), ("experts", "distill"))
    for command in right:
        assert load_recipe_for(command, name) == load_recipe(name)
    for command in wrong:
        with pytest.raises(InputError, match=f"recipe '{name}' is for 'dim {right[0]}'") as caught:
            load_recipe_for(command, name)
        assert "\n" not in str(caught.value)


def test_a_recipe_of_experts_alone_is_one_for_trajectories(tmp_path):
    """It is what a dry run of `dim experts` prints."""
    config = RecordConfig(student="convnet:width=8", zca=True, experts=ExpertsConfig(count=3))
    (tmp_path / "experts.toml").write_text(to_toml(config))
    loaded = load_recipe_for("experts", str(tmp_path / "experts.toml"))
    assert {name: getattr(loaded, name) for name in config.__dict__} == config.__dict__


def test_a_written_configuration_does_not_hold_the_options_of_other_generators():
    """Their defaults may change, and would then be refused when it is read."""
    config = TrainConfig(generator=GeneratorConfig(name="diffusion", steps=4))
    written = to_dict(config)["generator"]
    assert written == to_dict(config.generator)
    assert written["steps"] == 4
    assert not {"latent_dim", "label_scale", "pretrained"} & written.keys()
    assert "latent_dim" in to_dict(TrainConfig())["generator"]
    assert "latent_dim" not in to_toml(config)


def _literals(hint):
    """All values that an annotation lists, however deep they stand in it."""
    arguments = typing.get_args(hint)
    return (
        list(arguments) if typing.get_origin(hint) is typing.Literal else [one for part in arguments for one in _literals(part)]
    )


LISTED = [
    (cls, name, value)
    for cls in vars(dim.config).values()
    if dataclasses.is_dataclass(cls)
    for name, hint in typing.get_type_hints(cls).items()
    for value in _literals(hint)
]


@pytest.mark.parametrize(("cls", "name", "value"), LISTED, ids=lambda part: getattr(part, "__name__", str(part)))
def test_every_value_that_a_setting_lists_can_be_set(cls, name, value):
    refused = ""
    try:
        assert getattr(from_dict(cls, {name: value}), name) == value
    except InputError as error:
        refused = str(error)
    assert "expected one of" not in refused  # it may need other settings beside it


def test_toml_round_trip_of_unusual_values():
    config = from_dict(
        TrainConfig,
        {
            "about": {"title": 'quoted " and \\ and \n and é', "source": "[table]\nx = 1"},
            "data": {"dataset": "folder", "root": "C:\\data", "resolution": 12, "channels": 3},
            "stage_one": {"lr": 1e-20, "epochs": 1e16, "betas": [0.5, 0.25], "lr_end": 0},
            "fit": {"trackers": [], "seed": -3, "channels_last": False},
        },
    )
    assert from_dict(TrainConfig, tomllib.loads(to_toml(config))) == config


def test_a_recipe_sets_only_what_differs():
    config = from_dict(TrainConfig, {"stage_two": {"lr": 1}, "generator": {"width": 8}})
    assert config.stage_two == dataclasses.replace(TrainConfig().stage_two, lr=1.0)
    assert isinstance(config.stage_two.lr, float)
    assert config.generator == GeneratorConfig(width=8)
    assert config.stage_one == TrainConfig().stage_one


def test_values_are_laid_over_a_base():
    base = from_dict(TrainConfig, {"generator": {"width": 8}})
    config = from_dict(TrainConfig, {"generator": {"latent_dim": 3}}, base)
    assert config.generator == GeneratorConfig(width=8, latent_dim=3)
    assert base.generator == GeneratorConfig(width=8)


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().generator.width = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generater": {}}, r"unknown key 'generater'.*Did you mean 'generator'\?"),
        ({"generator": {"widht": 3}}, r"unknown key 'generator.widht' in generator\. Did you mean 'width'\?"),
        ({"stage_one": {"qqqq": 3}}, r"unknown key 'stage_one.qqqq'.*Known:.*epochs"),
    ],
)
def test_unknown_keys_name_the_nearest(values, message):
    with pytest.raises(InputError, match=message):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize(
    "values",
    [
        {"generator": 3},
        {"generator": {"width": "wide"}},
        {"generator": {"width": 3.5}},
        {"generator": {"width": True}},
        {"generator": {"name": "vae"}},
        {"stage_one": {"lr": "1e-4"}},
        {"stage_one": {"lr": True}},
        {"stage_one": {"betas": [0.1]}},
        {"stage_one": {"betas": [0.1, "x"]}},
        {"stage_one": {"betas": 0.1}},
        {"data": {"channels": 2}},
        {"data": {"channels": True}},
        {"data": {"download": "yes", "dataset": "mnist"}},
        {"data": {"root": 5, "dataset": "folder"}},
        {"pool": {"students": "convnet"}},
        {"pool": {"students": ["convnet", 5]}},
        {"fit": {"precision": "fp16"}},
        {"fit": {"seed": None}},
        {"matching": {"distance": "random"}},
    ],
)
def test_values_of_a_wrong_type_are_refused_by_name(values):
    section, inner = next(iter(values.items()))
    name = f"{section}.{next(iter(inner))}" if isinstance(inner, dict) else section
    with pytest.raises(InputError, match=rf"^{name} is .*expected") as caught:
        from_dict(TrainConfig, values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"data": {"val_fraction": 0.6}},
        {"data": {"val_fraction": -0.1}},
        {"data": {"test_fraction": 0}},
        {"data": {"resolution": 3}},
        {"data": {"memory_gib": -1}},
        {"generator": {"latent_dim": 0}},
        {"generator": {"width": 0}},
        {"discriminator": {"width": -4}},
        {"stage_one": {"epochs": -1}},
        {"stage_one": {"epochs": float("nan")}},
        {"stage_one": {"epochs": float("inf")}},
        {"stage_two": {"batch_size": 1}},
        {"stage_two": {"lr": 0}},
        {"stage_two": {"lr_end": -1e-9}},
        {"stage_two": {"betas": [0, 1]}},
        {"adversarial": {"gradient_penalty": -1, "loss": "acgan-wgangp"}},
        {"adversarial": {"class_weight": -1, "loss": "acgan-wgangp"}},
        {"matching": {"weight": -0.1}},
        {"pool": {"students": []}},
        {"pool": {"members": 0}},
        {"pool": {"upkeep_steps": 0}},
        {"pool": {"upkeep_every": 0}},
        {"pool": {"max_age": 0}},
        {"pool": {"lr": -1}},
        {"fit": {"ema": 1}},
        {"fit": {"clip_norm": -1}},
        {"fit": {"log_steps": 0}},
        {"fit": {"checkpoint_minutes": -1}},
        {"fit": {"checkpoint_steps": -1}},
        {"fit": {"sample_steps": -1}},
        {"protocol": {"students": []}},
        {"protocol": {"epochs": 0}},
        {"protocol": {"batch_size": 0}},
        {"protocol": {"full_epochs": -1}},
        {"protocol": {"lr": 0}},
    ],
)
def test_values_out_of_range_are_refused(values):
    ((_, inner),) = values.items()
    with pytest.raises(InputError, match=rf"{next(iter(inner))} is .*: expected"):
        from_dict(TrainConfig, values)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"experts": {"count": 0}}, "experts.count"),
        ({"experts": {"batch_size": 0}}, "experts.batch_size"),
        ({"experts": {"together": 0}}, "experts.together"),
        ({"experts": {"epochs": 0}}, "experts.epochs"),
        ({"experts": {"epochs": 0.5}}, "experts.epochs"),
        ({"experts": {"every": 0}}, "experts.every"),
        ({"experts": {"lr": -1}}, "experts.lr"),
        ({"experts": {"lr": float("nan")}}, "experts.lr"),
        ({"experts": {"momentum": 1}}, "experts.momentum"),
        ({"experts": {"rho": -0.1, "optimizer": "gsam"}}, "experts.rho"),
        ({"experts": {"alpha": -0.1, "optimizer": "gsam"}}, "experts.alpha"),
        ({"experts": {"weight_decay": -0.1}}, "experts.weight_decay"),
        ({"experts": {"checkpoint_minutes": -1}}, "experts.checkpoint_minutes"),
        ({"experts": {"waypoints": 1}}, "experts.waypoints"),
        ({"experts": {"smooth": True}}, "experts.smooth"),
        ({"experts": {"optimizer": "adam"}}, "experts.optimizer"),
        ({"experts": {"storage": "float16"}}, "experts.storage"),
        ({"experts": {"compile": True}}, "experts.compile"),
        ({"trajectory": {"steps": 0}}, "trajectory.steps"),
        ({"trajectory": {"experts": 0}}, "trajectory.experts"),
        ({"trajectory": {"batch_size": -1}}, "trajectory.batch_size"),
        ({"trajectory": {"waypoints": 1, "path": "convex"}}, "trajectory.waypoints"),
        ({"trajectory": {"grows_for": 5}}, "trajectory.grows_for"),
        ({"trajectory": {"max_start_at_first": 5}}, "trajectory.grows_for"),
        ({"trajectory": {"gradient": "unroll", "compile": "on"}}, "trajectory.gradient"),
        ({"trajectory": {"gradient": "unroll", "offload": True}}, "trajectory.gradient"),
        ({"trajectory": {"gradient": "unroll", "precision": "bf16"}}, "trajectory.precision"),
        ({"trajectory": {"order": "reverse-over-reverse", "precision": "bf16"}}, "trajectory.precision"),
        ({"trajectory": {"gradient": "exact"}}, "trajectory.gradient"),
        ({"trajectory": {"distance": "angle"}}, "trajectory.distance"),
        ({"trajectory": {"distance": "direction"}}, "step_size.lr"),
        (
            {"trajectory": {"distance": "direction"}, "step_size": {"lr": 0}, "distill": {"skip_above": 1}},
            "distill.skip_above",
        ),
        ({"trajectory": {"path": "straight"}}, "trajectory.path"),
        ({"trajectory": {"order": "forward"}}, "trajectory.order"),
        ({"images": {"ipc": 0}}, "images.ipc"),
        ({"images": {"init": "random"}}, "images.init"),
        ({"images": {"lr": -1}}, "images.lr"),
        ({"images": {"momentum": 1}}, "images.momentum"),
        ({"labels": {"kind": "soft"}}, "labels.kind"),
        ({"labels": {"lr": -1, "kind": "learned"}}, "labels.lr"),
        ({"labels": {"momentum": -0.1, "kind": "learned"}}, "labels.momentum"),
        ({"labels": {"init": "one"}}, "labels.init"),
        ({"labels": {"init": "one", "kind": "teacher"}}, "labels.init"),
        ({"labels": {"init": "mean", "kind": "learned"}}, "labels.init"),
        ({"step_size": {"initial": 0}}, "step_size.initial"),
        ({"step_size": {"lr": -1}}, "step_size.lr"),
        ({"step_size": {"momentum": 1}}, "step_size.momentum"),
        ({"distill": {"iterations": -1}}, "distill.iterations"),
        ({"distill": {"skip_above": -1}}, "distill.skip_above"),
        ({"distill": {"log_steps": 0}}, "distill.log_steps"),
        ({"zca": 1}, "zca"),
        ({"student": 3}, "student"),
    ],
)
def test_values_of_trajectory_recipes_out_of_range_are_refused(values, name):
    with pytest.raises(InputError, match=rf"^{name} is .*: expected") as caught:
        from_dict(TrajectoryRecipe, values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"experts": {"count": 1, "epochs": 0.5, "every": 0.5, "batch_size": 1, "momentum": 0, "waypoints": 2, "smooth": True}},
        {
            "trajectory": {
                "steps": 1,
                "max_start_at_first": 1,
                "grows_for": 1,
                "path": "convex",
                "waypoints": 2,
                "gradient": "frozen",
                "compile": "on",
            }
        },
        {"images": {"ipc": 1, "lr": 0, "momentum": 0}, "labels": {"lr": 0, "kind": "learned"}, "step_size": {"lr": 0}},
        {"trajectory": {"distance": "direction"}, "step_size": {"lr": 0}, "distill": {"skip_above": 0.99}},
        {"distill": {"iterations": 0, "log_steps": 1, "skip_above": 0}},
    ],
)
def test_values_of_trajectory_recipes_at_the_edge_are_taken(values):
    config = from_dict(TrajectoryRecipe, values)
    assert from_dict(TrajectoryRecipe, tomllib.loads(to_toml(config))) == config


def test_a_window_that_does_not_grow_survives_toml():
    """None is left out."""
    config = TrajectoryRecipe(trajectory=TrajectoryConfig(max_start_at_first=None))
    assert "max_start_at_first" not in to_toml(config)
    assert from_dict(TrajectoryRecipe, tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(val_fraction=0, test_fraction=0.5, resolution=4),
        StageConfig(epochs=0, batch_size=2, lr_end=0),
        PoolConfig(members=1, upkeep_steps=1, upkeep_every=1, max_age=1),
    ],
)
def test_values_at_the_edge_of_their_range_are_taken(config):
    assert dataclasses.replace(config) == config


def test_step_budget_rounds_up():
    protocol = ProtocolConfig(epochs=3, batch_size=64)
    assert [protocol.steps(images) for images in (1, 64, 65, 640)] == [3, 3, 6, 30]


def test_a_recipe_by_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[generator]\nwidth = 12\n")
    assert load_recipe(str(path)).generator.width == 12


def test_recipes_that_cannot_be_read_are_input_errors(tmp_path):
    (tmp_path / "bad.toml").write_text("[generator\nwidth = 12")
    with pytest.raises(InputError, match="not valid TOML") as caught:
        load_recipe(str(tmp_path / "bad.toml"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no recipe file"):
        load_recipe(str(tmp_path / "absent.toml"))
    with pytest.raises(InputError, match="Did you mean 'digits-dim'"):
        load_recipe("digit-dim")
