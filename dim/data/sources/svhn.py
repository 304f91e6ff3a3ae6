"""SVHN: RGB house numbers of 32x32 pixels, by torchvision."""

from dim.data.torchvision import torchvision_source

__all__ = ["svhn"]

svhn = torchvision_source("SVHN", channels=3, size=32, classes=10)
