"""A stored set in timm, with the functions that its training script calls: the script itself is not part of its package.

dim sample runs/digits --ipc 50 --out sets/digits-50
python docs/examples/with_timm.py sets/digits-50 [MODEL] [EPOCHS]
"""

import sys

import timm
import torch
from timm.data import Mixup, create_dataset, create_loader
from timm.loss import SoftTargetCrossEntropy
from torch import nn

import dim


def main(folder: str, model: str = "resnet18", epochs: int = 10) -> nn.Module:
    spec = dim.load_set(folder).spec
    grey = spec.channels == 1
    dataset = create_dataset("", folder, split="", is_training=True, input_img_mode="L" if grey else "RGB")
    settings = {"input_size": spec.image_shape, "mean": spec.mean, "std": spec.std, "scale": (0.7, 1.0), "hflip": 0.0}
    loader = create_loader(dataset, batch_size=50, is_training=True, use_prefetcher=False, num_workers=0, **settings)
    mix = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=spec.num_classes)
    net = timm.create_model(model, num_classes=spec.num_classes, in_chans=spec.channels)
    optimizer, criterion = torch.optim.AdamW(net.parameters(), lr=1e-3), SoftTargetCrossEntropy()
    for epoch in range(epochs):
        for images, labels in loader:
            images, targets = mix(images, labels)
            loss = criterion(net(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.3f}")
    return net.eval()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
