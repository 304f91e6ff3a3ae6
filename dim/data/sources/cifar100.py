"""CIFAR-100: RGB photographs of 32x32 pixels in a hundred classes, by torchvision."""

from dim.data.torchvision import torchvision_source

__all__ = ["cifar100"]

cifar100 = torchvision_source("CIFAR100", channels=3, size=32, classes=100)
