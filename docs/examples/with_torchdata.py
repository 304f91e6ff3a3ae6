"""A loop on torchdata's StatefulDataLoader over a GeneratedDataset that is stopped, and goes on with the next batch.

python docs/examples/with_torchdata.py runs/digits state.pt [EPOCHS]
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

import dim
from dim.nets.student import build_student


def main(run: str, file: str, epochs: int = 5, shuffle: bool = True) -> nn.Module:
    generator = dim.load_generator(run)
    dataset = dim.GeneratedDataset(generator, length=1000)
    loader = StatefulDataLoader(dataset, batch_size=50, shuffle=shuffle)
    model = build_student("convnet:width=32", generator.spec, seed=0)  # any model that takes [-1, 1] images
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    parts, first = {"loader": loader, "model": model, "optimizer": optimizer}, 0
    if Path(file).exists():
        saved = torch.load(file, weights_only=True)
        first = saved.pop("epoch")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    for epoch in range(first, epochs):
        dataset.set_epoch(epoch)  # the loader's state holds its place in an epoch, but not which one
        for step, (images, labels) in enumerate(loader):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 5 == 4:
                torch.save({"epoch": epoch, **{name: part.state_dict() for name, part in parts.items()}}, file)
                print(f"epoch {epoch}: loss {loss.item():.3f}")
    return model.eval()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
