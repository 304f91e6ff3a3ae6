"""benchmarks/replay.py in miniature: its rows, what it compares with, and its page."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dim.data.real import RealData
from dim.data.synthetic import SyntheticSet
from dim.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def program() -> Iterator[SimpleNamespace]:
    """The program and its parts by their names; forgotten afterwards, as benchmarks/ is no package."""
    parts = ("scale", "shop", "productions", "subjects", "cells", "plan", "page")  # whose tables it writes alike
    own = ("scale", "memories", "learner", "page")
    names = ["common", *(f"cifar10_{part}" for part in parts), *(f"replay_{part}" for part in own), "replay"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        loaded = {name: importlib.import_module(name) for name in names}
        yield SimpleNamespace(main=loaded["replay"], **{part: loaded[f"replay_{part}"] for part in own})
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(program) -> RealData:
    return program.scale.tiny().real(None, torch.device("cpu"))


def learner(program, data, seed: int = 0):
    return program.learner.Learner(program.scale.tiny(), data, seed, torch.device("cpu"))


# --- rows --------------------------------------------------------------------------------------------------------------------

_ROWS = ("tasks-none-0", "tasks-joint-0", "tasks-refined-0", "tasks-generated-webp-0", "tasks-reservoir-1", "tasks-herding-1")
_ROWS += ("clients-random-webp-1kB-0", "clients-generated-1kB-0", "clients-fedavg-0", "within-refined-1")


def test_the_whole_path_in_miniature(program, tmp_path, capsys):
    call = {"tiny": True, "out": str(tmp_path / "out")}
    program.main.main(program.main.Arguments(only=_ROWS, **call))
    found = {path.stem: json.loads(path.read_text())["rows"][0] for path in (tmp_path / "out" / "results").glob("*.json")}
    assert found.keys() == set(_ROWS)
    for row in found.values():
        assert {"commit", "configuration", "sources", "wall_seconds"} <= row["made"].keys()
    for name in ("tasks-refined-0", "tasks-generated-webp-0", "tasks-reservoir-1", "tasks-herding-1"):
        row = found[name]
        assert len(row["after_task"]) == len(row["held"]) == len(row["made_of"]) == 5
        assert all(0 < held["bytes"] <= 2000 for held in row["held"])
        assert row["final"] == row["after_task"][-1]
        assert "memory_alone" in row
    assert found["tasks-refined-0"]["tasks"] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert len({each["digest"] for each in found["tasks-refined-0"]["made_of"]}) == 5
    assert sorted(label for classes in found["tasks-herding-1"]["tasks"] for label in classes) == list(range(10))
    for name in ("clients-random-webp-1kB-0", "clients-generated-1kB-0"):
        assert all(0 < each["bytes"] <= 1000 for each in found[name]["clients"])
        assert found[name]["sent"] == sum(each["bytes"] for each in found[name]["clients"])
    assert len(found["within-refined-1"]["within_task"]) == 5
    assert found["within-refined-1"]["images"] == 2 * 2
    rounds = found["clients-fedavg-0"]["after_round"]
    assert rounds[1]["sent"] == 2 * rounds[0]["sent"] > 0
    capsys.readouterr()
    program.main.main(program.main.Arguments(only=("tasks-[nj]*-0", "tasks-refined-0", "clients-fed*"), missing=True, **call))
    assert capsys.readouterr().out == "0 of 4 missing\n"
    program.main.main(program.main.Arguments(render=True, **call))
    page = (tmp_path / "out" / "pages" / "docs" / "replay.md").read_text()
    final = found["tasks-refined-0"]["final"]
    assert f"| generator per task, refined, 8 bits | {final:.2f} (n = 1) |" in page
    assert "| FedAvg, 2 rounds |" in page
    accuracy = found["within-refined-1"]["accuracy"]
    assert f"| generator per task, refined | {accuracy:.2f} (n = 1) |" in page
    assert "random real images, 8 bits;" in page.partition("Not run: ")[2]


def test_unknown_rows_are_refused(program):
    with pytest.raises(InputError, match="only is 'tasks-other': no row matches; --missing lists them"):
        program.main.main(program.main.Arguments(tiny=True, only=("tasks-other",), missing=True))


def test_the_telling_rows_come_first(program):
    names = [cell.name for cell in program.main.cells(program.scale.Scale())]
    assert names[:4] == ["tasks-none-0", "tasks-joint-0", "tasks-random-0", "tasks-generated-0"]
    assert len(names) == len(set(names)) == 5 * 11 + 3 * (3 * 4 + 1) + 5 * 3


# --- what is compared --------------------------------------------------------------------------------------------------------


def test_tasks_hold_their_classes_under_their_names(program, data):
    task = program.scale.restricted(data, [7, 2])
    assert task.spec.class_names == ("7", "2")
    assert task.spec.fingerprint not in (data.spec.fingerprint, program.scale.restricted(data, [2, 7]).spec.fingerprint)
    assert torch.equal(task.train.labels == 0, data.train.labels[torch.isin(data.train.labels, torch.tensor([7, 2]))] == 7)
    assert len(program.scale.of_classes(data.test, [7, 2])) == 12


def test_every_image_belongs_to_one_client(program, data):
    scale = dataclasses.replace(program.scale.tiny(), clients=5)
    clients = program.scale.clients_of(data, scale, 0)
    images = torch.cat([client.train.images for client in clients])
    assert len(data.train) - 5 <= len(images) <= len(data.train)
    assert len({bytes(image.numpy()) for image in images}) == len(images)
    shares = torch.stack([torch.bincount(client.train.labels, minlength=10) for client in clients]).float()
    assert (shares.max(0).values / shares.sum(0)).mean() > 0.6  # most images of a class are of one client
    assert not torch.equal(clients[0].train.labels, program.scale.clients_of(data, scale, 1)[0].train.labels)


def test_a_client_without_room_for_all_classes_sends_those_that_it_has_most_of(program, data):
    counts = torch.tensor([3, 0, 9, 1, 0, 4, 0, 0, 0, 2])
    labels = torch.arange(10).repeat_interleave(counts)
    train = program.scale.part(data.train, torch.arange(len(labels)), labels)
    client = RealData(data.spec, train, data.val, data.test)
    memory = program.main.ReplayMemory(data.spec, bytes=10 + 3 * 65)
    assert program.main.most_seen(client, None, memory) == [0, 2, 5]
    assert program.main.most_seen(client, [3, 9], memory) == [3, 9]
    coded = program.main.ReplayMemory(data.spec, bytes=10 + 3 * 65, webp=30)
    assert program.main.most_seen(client, None, coded) is None
    memory.add(program.memories.real(client, 5, 0), [0, 2, 5])
    assert memory.bytes_stored()["images"] == 3 * 64


def test_a_reservoir_is_a_uniform_sample_of_all_that_came(program, data):
    counts = torch.zeros(10)
    for seed in range(40):
        reservoir = program.learner.Reservoir(data, 10 + 50 * 65, seed)
        for classes in ([0, 1, 2], [3, 4], [5, 6, 7, 8, 9]):
            reservoir.add(program.memories.real(program.scale.restricted(data, classes), 100, 0))
        assert len(reservoir) == 50
        assert sum(reservoir.bytes_stored().values()) == 50 * 65
        counts += torch.tensor([reservoir.counts.get(label, 0) for label in range(10)])
    assert counts.sum() == 2000
    assert (counts - 200).abs().max() < 45  # three and a half standard deviations of a hypergeometric count


def test_fedavg_of_one_client_is_that_client(program, data):
    one, alone = learner(program, data), learner(program, data)
    (first, second) = program.learner.federated_averaging(one, [data])
    steps = -(-len(data.train) // alone.scale.batch)
    for number in range(2):
        seed = program.learner.rng.fold(0, "replay-client", 0, number)
        alone.learn(program.learner.shuffled(data.train, alone.scale.batch, seed), steps)
    assert second["accuracy"] == alone.score(data.test)
    for name, value in alone.net.state_dict().items():
        assert torch.allclose(value, one.net.state_dict()[name], atol=1e-6), name
    assert first["sent"] == sum(4 * value.numel() for value in one.net.parameters())


def test_fedavg_weighs_clients_by_their_images(program, data):
    few = program.scale.part(data.train, torch.arange(16))
    small = RealData(data.spec, few, data.val, data.test)
    scale = dataclasses.replace(program.scale.tiny(), rounds=1)
    nets = []
    for clients in ([data], [small], [data, small]):
        found = program.learner.Learner(scale, data, 0, torch.device("cpu"))
        start = {name: value.clone() for name, value in found.net.state_dict().items()}
        found._augment = lambda images, source: images
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                program.learner.rng, "fold", lambda *parts: 5
            )  # a client's images come in the same order wherever it is
            program.learner.federated_averaging(found, clients)
        nets.append({name: value - start[name] for name, value in found.net.state_dict().items()})
    share = len(data.train) / (len(data.train) + 16)
    for name, value in nets[2].items():
        assert torch.allclose(value, share * nets[0][name] + (1 - share) * nets[1][name], atol=1e-5), name


def test_a_learner_sees_as_many_images_of_the_memory_as_of_the_task(program, data):
    seen = []

    class Watched(program.learner.Learner):
        def learn(self, batches, steps):
            seen.append(batches(0)[1])

    memory = program.main.ReplayMemory(data.spec, bytes=10**6)
    tasks = [[0, 1], [2, 3], [4, 5]]

    def add(number: int) -> None:
        memory.add(program.memories.real(program.scale.restricted(data, tasks[number]), 5, 0))

    watched = Watched(program.scale.tiny(), data, 0, torch.device("cpu"))
    scores = program.learner.one_after_another(watched, tasks, memory, add)
    assert len(scores) == 3
    assert [set(labels.tolist()) <= {0, 1} for labels in seen] == [True, False, False]
    assert set(seen[2][:4].tolist()) <= {4, 5}
    assert set(seen[2][4:].tolist()) <= {0, 1, 2, 3}
    assert all(len(labels) == 8 for labels in seen)


def test_sets_of_clients_are_trained_on_together(program, data):
    sets = [program.memories.real(program.scale.restricted(data, list(range(10))), 2, seed) for seed in (0, 1)]
    assert all(isinstance(each, SyntheticSet) for each in sets)
    assert 0 <= program.learner.train_on_all(learner(program, data), sets, 2) <= 100


# --- the page ----------------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_rows_that_are_there(program):
    page = ROOT / "docs" / "replay.md"
    results = ROOT / "benchmarks" / "results" / "replay-fashion"
    assert program.page.rendered(page.read_text(), results, program.scale.Scale()) == page.read_text()
