"""Training one classifier: its schedule, its last step, and its accuracy."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from dim.config import ProtocolConfig
from dim.data.splits import JoinedSplit
from dim.features.classifier import accuracy, learning_rate_factor, train_student
from dim.nets.student import batch_statistics, build_student

PROTOCOL = ProtocolConfig(students=("convnet:width=4",), epochs=3, batch_size=16, lr=0.05, augment="crop")


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("step", [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1]),
        ("constant", [1] * 8),
        ("cosine", [0.5 + 0.5 * math.cos(math.pi * step / 8) for step in range(8)]),
    ],
)
def test_learning_rate_schedules(schedule, factors):
    assert [learning_rate_factor(schedule, step, 8) for step in range(8)] == pytest.approx(factors)


def test_accuracy_is_the_percentage_of_right_answers(digits, monkeypatch):
    class Always(nn.Module):
        def forward(self, images):
            return nn.functional.one_hot(torch.full((len(images),), 3), 10).float()

    expected = 100 * int((digits.test.labels == 3).sum()) / len(digits.test)
    for batch_size in (7, 1000):
        monkeypatch.setattr("dim.features.classifier.JUDGED", batch_size)
        assert accuracy(Always(), digits.test, torch.device("cpu")) == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["batchstats", "instance"])
def test_images_are_judged_among_all_classes_where_batches_are_normalised(norm, digits):
    by_class = digits.test.labels.argsort(stable=True)
    split = JoinedSplit([digits.test], by_class)
    net, seen = build_student(f"convnet:width=4,norm={norm}", digits.spec, seed=0).eval(), []

    def logits(images):
        seen.append(images)
        return torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.int64), 10).float()

    right = accuracy(logits, split, torch.device("cpu"), net=net)
    assert right == pytest.approx(100 * int((digits.test.labels == 0).sum()) / len(split))
    images, _ = split.batch(torch.arange(len(split)))
    assert torch.equal(torch.cat(seen), images) == (norm == "instance")
    assert sorted(bytes(one.numpy()) for one in torch.cat(seen)) == sorted(bytes(one.numpy()) for one in images)
    if norm == "batchstats":
        assert max(map(len, seen)) - min(map(len, seen)) <= 1
    assert batch_statistics(net) == [] if norm == "instance" else len(batch_statistics(net)) > 0


def test_a_student_is_trained_for_all_its_steps_and_returned_as_it_ends(digits):
    asked, batch = [], digits.train.batch(torch.arange(16))

    def feed(step):
        asked.append(step)
        return batch

    device = torch.device("cpu")
    first, again, longer, other = (
        train_student("convnet:width=4", feed, steps, PROTOCOL, digits, seed, device)
        for steps, seed in ((4, 0), (4, 0), (5, 0), (4, 1))
    )
    assert asked == [*range(4), *range(4), *range(5), *range(4)]
    assert not first.training
    values = [torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (first, again, longer, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[3])


def test_the_learning_rate_schedule_is_used(digits):
    batch = digits.train.batch(torch.arange(16))

    def end(**changes):
        protocol = dataclasses.replace(PROTOCOL, augment="", momentum=0.0, weight_decay=0.0, **changes)
        net = train_student("convnet:width=4", lambda step: batch, 2, protocol, digits, 0, torch.device("cpu"))
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert not torch.equal(end(schedule="step"), end(schedule="constant"))
