"""The memory as the storage policy of Avalanche's replay plugin.

python docs/examples/with_avalanche.py runs/digits [KILOBYTES] [EPOCHS]
"""

import sys

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ExemplarsBuffer
from avalanche.training.supervised import Naive
from torch import nn
from torch.utils.data import TensorDataset

import dim
from dim.data.origin import real_data_of
from dim.nets.student import build_student


def dataset(images: torch.Tensor, labels: torch.Tensor) -> TaskAwareSupervisedClassificationDataset:
    of_items = (
        DataAttribute(labels.tolist(), "targets"),
        DataAttribute([0] * len(labels), "targets_task_labels", use_in_getitem=True),
    )
    return TaskAwareSupervisedClassificationDataset([TensorDataset(images, labels)], data_attributes=of_items)


class Memory(ExemplarsBuffer):
    def __init__(self, generator: dim.Generator, size: int) -> None:
        super().__init__(max_size=size)  # in bytes, where Avalanche's own policies count images
        self.generator, self.memory = generator, dim.ReplayMemory(generator.spec, bytes=size)

    def update(self, strategy, **kwargs) -> None:
        self.memory.add(self.generator, strategy.experience.classes_in_this_experience)
        self.buffer = dataset(*self.memory.dataset().tensors())

    def resize(self, strategy, new_size: int) -> None:
        raise NotImplementedError("a memory has one size")


def main(run: str, kilobytes: int = 10, epochs: int = 10) -> nn.Module:
    generator = dim.load_generator(run)  # of all classes here; in earnest one of each task, trained on its images
    real = real_data_of(generator.info, None, "cpu")
    parts = [dataset(*part.batch(torch.arange(len(part)))) for part in (real.train, real.test)]
    tasks = nc_benchmark(*parts, n_experiences=5, task_labels=False, seed=0)
    model = build_student("convnet:width=32,depth=2", generator.spec, seed=0)
    policy = Memory(generator, 1000 * kilobytes)
    settings = {"train_mb_size": 50, "train_epochs": epochs, "plugins": [ReplayPlugin(policy.max_size, storage_policy=policy)]}
    learner = Naive(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=3e-3), **settings)
    for experience in tasks.train_stream:
        learner.train(experience)
    print(learner.eval(tasks.test_stream))
    return model.eval()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
