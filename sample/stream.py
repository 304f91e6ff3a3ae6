"""A generator in your own training loop: train a classifier on images that are never stored.

python sample/stream.py runs/digits [STEPS]
"""

import sys

import torch
import torch.nn.functional as F

import dim
from dim.nets.student import build_student


def main(run: str, steps: int = 200) -> None:
    generator = dim.load_generator(run)
    model = build_student("convnet:width=64", generator.spec, seed=0)  # any model that takes [-1, 1] images
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step, (images, labels) in enumerate(dim.GeneratedLoader(generator, batch_size=64, steps=steps, seed=0)):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
