"""The examples of docs/replay.md: a memory in a plain loop, in Avalanche and in Flower, which only their tests need."""

import re

import pytest
import torch
from plugging import example, mean_generator, run_as_program
from torch import nn

from dim.nets.student import build_student


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> str:
    """See `mean_generator`."""
    return mean_generator(digits, tmp_path_factory.mktemp("run"))


def accuracies(model: nn.Module, digits) -> torch.Tensor:
    """Of the ten classes, on the real test part."""
    images, labels = digits.test.batch(torch.arange(len(digits.test)))
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == labels).float()
    return torch.stack([right[labels == label].mean() for label in range(10)])


def test_a_plain_loop_remembers_earlier_classes(run, digits, capsys):
    found = accuracies(run_as_program("with_replay", run, 4, 12), digits)
    assert found[:8].mean() > 0.3  # without a memory 0: it knows the last two classes only
    sizes = re.findall(r"(\d+) images of each, (\d+) bytes", capsys.readouterr().out)
    assert [int(ipc) for ipc, _ in sizes] == [30, 15, 10, 7, 6]
    assert all(3000 < int(size) <= 4000 for _, size in sizes)


# Of its own dependencies: a library of quadratic programs, which this example does not need, and of its age.
@pytest.mark.filterwarnings("ignore:no QP solver found")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:No loggers specified")
def test_avalanche_replays_the_memory(run, digits):
    pytest.importorskip("avalanche")
    found = accuracies(run_as_program("with_avalanche", run, 4, 12), digits)
    assert (found > 0.3).sum() >= 6


class Grid:
    """Flower's grid without its simulation, which starts Ray: messages go to the client's app in this process."""

    def __init__(self, client, clients: int) -> None:
        from flwr.app import Context, RecordDict
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 0  # as its simulation sets them
        configs = [{"partition-id": number, "num-partitions": clients} for number in range(clients)]
        self._client = client
        self._contexts = {number + 1: Context(1, number + 1, own, RecordDict(), {}) for number, own in enumerate(configs)}

    def get_node_ids(self) -> list[int]:
        return list(self._contexts)

    def send_and_receive(self, messages) -> list:
        return [self._client(message, self._contexts[message.metadata.dst_node_id]) for message in messages]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_flowers_clients_send_a_set_of_few_kilobytes_each(digits, capsys):
    pytest.importorskip("flwr")
    from flwr.app import Context, RecordDict

    module, context = example("with_flower"), Context(1, 0, {}, RecordDict(), {})
    counts = torch.zeros(10)
    for number in range(3):
        counts += torch.bincount(module["own_set"](number, 3).labels, minlength=10)
    assert torch.equal(counts, torch.bincount(digits.train.labels, minlength=10).float())
    module["server"](Grid(module["client"], 3), context)
    sizes = re.findall(r"(\d+) images of (\d+) classes in (\d+) bytes", capsys.readouterr().out)
    assert len(sizes) == 3
    assert all(0 < int(size) <= module["BYTES"] for *_, size in sizes)
    assert max(int(classes) for _, classes, _ in sizes) < 10
    model = build_student("convnet:width=32,depth=2", digits.spec, seed=0)
    model.load_state_dict(context.state["model"].to_torch_state_dict())
    assert accuracies(model, digits).mean() > 0.7
