"""CIFAR-10: RGB photographs of 32x32 pixels, by torchvision."""

from dim.data.torchvision import torchvision_source

__all__ = ["cifar10"]

cifar10 = torchvision_source("CIFAR10", channels=3, size=32, classes=10)
