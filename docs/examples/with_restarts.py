"""A loop on a GeneratedLoader that is stopped, and goes on with the next batch of its stream.

python docs/examples/with_restarts.py runs/digits state.pt [EPOCHS]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import dim
from dim.nets.student import build_student


def main(run: str, file: str, epochs: int = 5, shuffle: bool = True) -> nn.Module:
    generator = dim.load_generator(run)
    loader = dim.GeneratedLoader(generator, batch_size=50, steps=20, shuffle=shuffle)
    model = build_student("convnet:width=32", generator.spec, seed=0)  # any model that takes [-1, 1] images
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    parts = {"loader": loader, "model": model, "optimizer": optimizer}
    if Path(file).exists():
        for name, state in torch.load(file, weights_only=True).items():
            parts[name].load_state_dict(state)
    for epoch in range(loader.epoch, epochs):  # the loader knows its epoch, and its place within it
        for step, (images, labels) in enumerate(loader):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 5 == 4:
                torch.save({name: part.state_dict() for name, part in parts.items()}, file)
                print(f"epoch {epoch}: loss {loss.item():.3f}")
    return model.eval()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
