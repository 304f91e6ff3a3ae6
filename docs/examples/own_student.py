"""A student of your own: one hidden layer.

dim evaluate sets/digits-10 --students convnet own_student:hidden_layer:units=32
"""

import math

from torch import nn

from dim.nets.student import Student
from dim.spec import DataSpec


def hidden_layer(spec: DataSpec, *, units: int = 64) -> Student:
    """Pixels -> hidden units -> classes. `Student` normalises the images and adds the last layer.

    Args:
        spec: the data that it sees.
        units: of the hidden layer; an option, as in `own_student:hidden_layer:units=32`.
    """
    body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(spec.image_shape), units), nn.ReLU())
    return Student(spec, body, units)
