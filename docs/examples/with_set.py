"""A stored set in a plain PyTorch loop.

dim sample runs/digits --ipc 50 --out sets/digits-50
python docs/examples/with_set.py sets/digits-50 [EPOCHS]
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import dim
from dim.nets.student import build_student


def main(folder: str, epochs: int = 30) -> nn.Module:
    data = dim.load_set(folder)  # a map-style Dataset, whatever format the folder has
    model = build_student("convnet:width=32", data.spec, seed=0)  # any model that takes [-1, 1] images
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for images, targets in DataLoader(data, batch_size=50, shuffle=True):
            loss = F.cross_entropy(model(images), targets)  # classes or, in a set with soft labels, probabilities
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    return model.eval()


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
