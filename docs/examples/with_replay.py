"""Classes that come two at a time: a memory of a fixed number of bytes stands for the earlier ones.

python docs/examples/with_replay.py runs/digits [KILOBYTES] [EPOCHS]
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dim
from dim.data.origin import real_data_of
from dim.nets.student import build_student


def main(run: str, kilobytes: int = 10, epochs: int = 10) -> nn.Module:
    generator = dim.load_generator(run)  # of all classes here; in earnest one of each task, trained on its images
    real = real_data_of(generator.info, None, "cpu").train
    memory = dim.ReplayMemory(generator.spec, bytes=1000 * kilobytes)
    model = build_student("convnet:width=32,depth=2", generator.spec, seed=0)  # any model that takes [-1, 1] images
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for classes in torch.arange(generator.spec.num_classes).split(2):
        now = TensorDataset(*real.batch(torch.isin(real.labels, classes).nonzero().squeeze(1)))
        replayed = memory.batches(50) if len(memory) else None
        for _ in range(epochs):
            for images, labels in DataLoader(now, batch_size=50, shuffle=True):
                loss = F.cross_entropy(model(images), labels)
                if replayed is not None:
                    old, targets = next(replayed)  # classes or, in a memory of soft labels, probabilities
                    loss = (loss + F.cross_entropy(model(old), targets)) / 2
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        ipc = memory.add(generator, classes.tolist())  # earlier classes shrink to their first images
        print(f"classes up to {int(classes[-1])}: {ipc} images of each, {sum(memory.bytes_stored().values())} bytes")
    return model.eval()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]))
