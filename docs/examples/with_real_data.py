"""Real and generated images in one loop, in a proportion of your choice.

python docs/examples/with_real_data.py runs/mine photos/train [SHARE]

`photos/train` has a folder for each class; SHARE of the images of every batch are from there.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import dim
from dim.nets.student import build_student


def photos(folder: str, spec: dim.DataSpec) -> ImageFolder:
    """Images like the generator's: as large, in [-1, 1], with the same class numbers."""
    colours = v2.Grayscale() if spec.channels == 1 else v2.RGB()
    scale = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * spec.channels, [0.5] * spec.channels)]
    data = ImageFolder(folder, v2.Compose([colours, v2.Resize((spec.height, spec.width)), *scale]))
    if tuple(data.classes) != spec.class_names:
        raise SystemExit(f"{folder} has the classes {data.classes}: expected those of the generator, {spec.class_names}")
    return data


def main(run: str, folder: str, share: float = 0.2, epochs: int = 3) -> nn.Module:
    generator = dim.load_generator(run)
    count = round(share * 50)  # real images in a batch of 50
    real = DataLoader(photos(folder, generator.spec), batch_size=count, shuffle=True, drop_last=True)
    made = dim.GeneratedLoader(generator, batch_size=50 - count, steps=len(real))
    model = build_student("convnet:width=32", generator.spec, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for (images, labels), (more, classes) in zip(real, made, strict=True):
            outputs, targets = model(torch.cat((images, more))), torch.cat((labels, classes))
            loss = F.cross_entropy(outputs, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    return model.eval()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(float, sys.argv[3:4]))
