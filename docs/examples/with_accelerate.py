"""A stream in a loop of Hugging Face accelerate: each process has its own part.

accelerate launch --num_processes 2 docs/examples/with_accelerate.py runs/digits [WORKERS]
"""

import sys

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import dim
from dim.nets.student import build_student


def stream(run: str, accelerator: Accelerator, workers: int | None = None) -> dim.GeneratedLoader | DataLoader:
    """Batches of this process: generated on its device or, if `workers` is a number, by so many processes on the CPU."""
    if workers is None:
        return dim.GeneratedLoader(dim.load_generator(run, accelerator.device), batch_size=50, steps=20)  # nothing to prepare
    dataset = dim.GeneratedDataset(dim.load_generator(run), length=50 * 20 * accelerator.num_processes)
    return accelerator.prepare(DataLoader(dataset, batch_size=50, num_workers=workers))


def main(run: str, workers: int | None = None) -> nn.Module:
    accelerator = Accelerator()
    model = build_student("convnet:width=32", dim.load_generator(run).spec, seed=0)  # any model that takes [-1, 1] images
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    loader = stream(run, accelerator, workers)
    for epoch in range(3):
        loader.set_epoch(epoch)  # of either: new images in every epoch
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
