"""Configuration: recipes, TOML, and refusals that name the remedy."""

import dataclasses
import json
import tomllib

import pytest

from dim.config import (
    DataConfig,
    GeneratorConfig,
    PoolConfig,
    ProtocolConfig,
    StageConfig,
    TrainConfig,
    from_dict,
    load_recipe,
    recipe_names,
    to_dict,
    to_toml,
)
from dim.errors import InputError
from dim.nets.students import parse_student


def test_the_demo_recipe_is_there():
    assert {"digits-dim", "cifar10-dim2023"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_toml_and_json(name):
    config = load_recipe(name)
    assert config.about.title
    assert from_dict(TrainConfig, tomllib.loads(to_toml(config))) == config
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    for student in (*config.pool.students, *config.protocol.students):
        parse_student(student)


def test_toml_round_trip_of_unusual_values():
    config = from_dict(
        TrainConfig,
        {
            "about": {"title": 'quoted " and \\ and \n and é', "source": "[table]\nx = 1"},
            "data": {"root": "C:\\data", "resolution": 12, "channels": 3},
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
        {"generator": {"name": "gan"}},
        {"stage_one": {"lr": "1e-4"}},
        {"stage_one": {"lr": True}},
        {"stage_one": {"betas": [0.1]}},
        {"stage_one": {"betas": [0.1, "x"]}},
        {"stage_one": {"betas": 0.1}},
        {"data": {"channels": 2}},
        {"data": {"channels": True}},
        {"data": {"download": "yes"}},
        {"data": {"root": 5}},
        {"pool": {"students": "convnet"}},
        {"pool": {"students": ["convnet", 5]}},
        {"fit": {"precision": "fp16"}},
        {"fit": {"seed": None}},
        {"matching": {"pairing": "pairs"}},
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
        {"adversarial": {"gradient_penalty": -1}},
        {"adversarial": {"class_weight": -1}},
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
