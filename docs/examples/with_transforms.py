"""torchvision's transforms, CutMix and MixUp on both loaders, with hard or soft labels.

python docs/examples/with_transforms.py runs/digits [TEACHER]

TEACHER is a folder of `dim experts`, or a run whose models give soft labels.
"""

import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import dim
from dim.nets.student import build_student


def augmentation(spec: dim.DataSpec) -> v2.Transform:
    """For one image. Transforms of colours want [0, 1]; the last step makes what your model takes: here [-1, 1] again."""
    unit = v2.Normalize([-1.0] * spec.channels, [2.0] * spec.channels)
    crop = v2.RandomCrop((spec.height, spec.width), padding=1)
    return v2.Compose([unit, crop, v2.ColorJitter(0.2, 0.2), v2.Normalize([0.5] * spec.channels, [0.5] * spec.channels)])


def loaders(run: str, teacher: str | None = None) -> list[DataLoader | dim.GeneratedLoader]:
    generator = dim.load_generator(run)
    augment = augmentation(generator.spec)
    relabel = dim.load_teacher(teacher, generator.spec).labels if teacher else None  # it sees images without augmentation
    dataset = dim.GeneratedDataset(generator, length=1000, transform=augment, relabel=relabel)
    # Of a batch, v2 would change all images in the same way.
    settings = {"transform": lambda images: torch.stack([augment(image) for image in images]), "relabel": relabel}
    return [DataLoader(dataset, batch_size=50), dim.GeneratedLoader(generator, batch_size=50, steps=20, **settings)]


def main(run: str, teacher: str | None = None) -> nn.Module:
    spec = dim.load_generator(run).spec
    mix = v2.RandomChoice([v2.CutMix(num_classes=spec.num_classes), v2.MixUp(num_classes=spec.num_classes)])
    model = build_student("convnet:width=32", spec, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for loader in loaders(run, teacher):
        for images, targets in loader:
            images, targets = mix(images, targets)  # classes or probabilities -> probabilities
            loss = F.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"{type(loader).__name__}: loss {loss.item():.3f}")
    return model.eval()


if __name__ == "__main__":
    main(*sys.argv[1:3])
