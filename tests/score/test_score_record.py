"""What a score says of its source."""

import copy

import dim
from dim.data.synthetic import SyntheticSet
from dim.score.record import production_seconds


def test_seconds_to_produce(digits_gan):
    generator = copy.deepcopy(digits_gan)
    drawn = dim.sample_set(generator, ipc=1)
    assert production_seconds(generator) is None
    assert production_seconds(drawn) is None  # how long the generator was trained is not known
    generator.info = {"about": {"seconds": 100.0}}
    drawn = dim.sample_set(generator, ipc=1)
    assert production_seconds(generator) == 100
    assert production_seconds(drawn) == 100 + drawn.info["seconds"]
    del generator.info
    learned = SyntheticSet(drawn.images, drawn.labels, drawn.spec, info={"method": "trajectory matching", "seconds": 7.0})
    assert production_seconds(learned) == 7
    assert production_seconds(SyntheticSet(drawn.images, drawn.labels, drawn.spec)) is None
