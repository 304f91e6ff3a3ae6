"""MNIST: grey handwritten digits of 28x28 pixels, by torchvision."""

from dim.data.torchvision import torchvision_source

__all__ = ["mnist"]

mnist = torchvision_source("MNIST", channels=1, size=28, classes=10)
