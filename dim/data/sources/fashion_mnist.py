"""Fashion-MNIST: grey garments of 28x28 pixels, by torchvision."""

from dim.data.torchvision import torchvision_source

__all__ = ["fashion_mnist"]

fashion_mnist = torchvision_source("FashionMNIST", channels=1, size=28, classes=10)
