"""scikit-learn's 8x8 digits, which need no download."""

import numpy as np
import torch

from dim.config import DataConfig
from dim.config.data import SplitOptions
from dim.data.items import Items, fit_size

__all__ = ["digits"]


def digits(config: DataConfig) -> tuple[Items, None]:
    """1,797 grey images of ten classes; they have no test part of their own."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))[:, None]
    names = tuple(str(label) for label in range(10))
    return Items(torch.from_numpy(data.target).long(), names, fit_size(images, config)), None


digits.Options = SplitOptions
digits.shape = (1, 8, 10)  # channels, height and width, classes
digits.reads_files = False
