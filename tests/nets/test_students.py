"""Students: one interface, internal normalisation, published sizes, and options that are read or refused."""

import pytest
import torch

from dim.config import STUDENTS
from dim.errors import InputError
from dim.nets.student import build_student, parse_student
from dim.nets.students.convnet import default_depth

NARROW = {name: f"{name}:width=8" for name in STUDENTS.names()}


def _images(spec, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, *spec.image_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("convnet", 320_010), ("resnet18", 11_173_962), ("resnet18:width=32", 2_797_610)],
)
def test_published_parameter_counts(spec, text, count):
    net = build_student(text, spec(3, 32, 10), seed=0)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (1, 28), (3, 64)])
@pytest.mark.parametrize("name", STUDENTS.names())
def test_every_student_takes_every_size(spec, name, channels, size):
    data = spec(channels, size, 5)
    net = build_student(NARROW[name], data, seed=0).eval()
    logits = net(_images(data))
    assert logits.shape == (3, 5)
    assert logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1], rtol=0, atol=1e-7), "the images make no difference"
    assert torch.equal(net.head(net.embed(_images(data))), logits)


@pytest.mark.parametrize("text", [*NARROW.values(), "timm:test_resnet"])
def test_students_normalise_internally(spec, text):
    """Equals body and head on images that the field's mean and std whitened by hand."""
    data = spec(3, 16, 4)
    net = build_student(text, data, seed=0).eval()
    images = _images(data)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    whitened = ((images + 1) / 2 - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(net(images), net.head(net.body(whitened).flatten(1)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(net(images), net.head(net.body(images).flatten(1)), rtol=1e-4, atol=1e-5)


def test_the_normalisation_is_part_of_the_architecture_and_not_of_the_weights(spec):
    net = build_student("convnet:width=4", spec(), seed=0)
    assert not {"mean", "std"} & net.state_dict().keys()
    assert net.double()(_images(spec()).double()).dtype == torch.float64


@pytest.mark.parametrize("norm", ["batch", "batchstats", "instance", "layer", "group", "none"])
def test_every_norm_can_be_trained_through(spec, norm):
    data = spec(3, 16)
    net = build_student(f"convnet:width=8,norm={norm}", data, seed=0)
    images = _images(data).requires_grad_()
    net(images).logsumexp(1).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_instance_norm_is_that_of_the_literature(spec):
    """Each channel of each image on its own, with an affine map."""
    data = spec(1, 8)
    net = build_student("convnet:width=3,depth=1", data, seed=0)
    conv, norm = net.body[0], net.body[1]
    features = conv(_images(data))
    by_hand = (features - features.mean((2, 3), keepdim=True)) / (features.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(norm(features), by_hand, rtol=1e-4, atol=1e-5)
    assert sum(parameter.numel() for parameter in norm.parameters()) == 6


def test_batchstats_uses_the_batch_also_in_evaluation(spec):
    data = spec(3, 8)
    net = build_student("resnet10:width=8,norm=batchstats", data, seed=0)
    assert not list(net.body.buffers())
    torch.testing.assert_close(net.eval()(_images(data)), net.train()(_images(data)))


@pytest.mark.parametrize("name", ["resnet10", "resnetap10", "vgg11"])
def test_batchstats_students_take_the_digits(spec, name):
    """Their last maps are one pixel: a batch has statistics there, a single image has none."""
    net = build_student(f"{name}:width=8,norm=batchstats", spec(1, 8), seed=0)
    assert net(_images(spec(1, 8))).isfinite().all()


@pytest.mark.parametrize(("size", "depth"), [(2, 1), (4, 2), (8, 3), (28, 3), (32, 3), (64, 4), (128, 5), (224, 6)])
def test_depth_follows_the_resolution(spec, size, depth):
    assert default_depth(spec(3, size)) == depth


@pytest.mark.parametrize("text", [*NARROW.values(), "timm:test_resnet"])
def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone(spec, text):
    data = spec(3, 16)

    def weights(seed, state):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        net = build_student(text, data, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])

    assert torch.equal(weights(5, 1), weights(5, 2))
    assert not torch.equal(weights(5, 1), weights(6, 1))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_models_take_the_image_size(spec, name):
    data = spec(1, 32, 6)
    net = build_student(f"timm:{name}", data, seed=0).eval()
    assert net(_images(data)).shape == (3, 6)
    assert net.embed(_images(data)).shape == (3, net.head.in_features)


def test_options_reach_timm(spec):
    net = build_student("timm:test_vit:patch_size=4", spec(3, 8), seed=0)
    assert net.body.model.patch_embed.grid_size == (2, 2)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("convnet", ("convnet", {})),
        ("convnet:width=64,norm=batch", ("convnet", {"width": 64, "norm": "batch"})),
        ("timm:resnet10t", ("timm:resnet10t", {})),
        ("timm:test_vit:patch_size=4,act_layer=relu", ("timm:test_vit", {"patch_size": 4, "act_layer": "relu"})),
    ],
)
def test_names_and_options_are_read(text, result):
    assert parse_student(text) == result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("convnett", "Did you mean 'convnet'"),
        ("", "unknown student ''"),
        ("convnet:widht=3", "unknown option 'widht'.*Did you mean 'width'"),
        ("convnet:width", "expected option=value"),
        ("convnet:width=wide", "expected a whole number"),
        ("convnet:width=-3", "expected a whole number"),
        ("convnet:width=--5", "expected a whole number"),
        ("convnet:width=0", "'width'"),
        ("convnet:width=1.5", "expected a whole number"),
        ("convnet:norm=weight", "norm is 'weight'"),
        ("convnet:pool=mean", "pool is 'mean'"),
        ("convnet:depth=4", "depth is 4.*at most 3"),
        ("alexnet:norm=batch", "unknown option 'norm'"),
        ("timm:test_resnt", "unknown timm model 'test_resnt'"),
        ("timm:test_vit", "cannot take 8x8 images"),
        ("timm:test_resnet:no_such_option=1", "no_such_option"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(spec, text, message):
    with pytest.raises(InputError, match=message) as caught:
        build_student(text, spec(3, 8), seed=0)
    assert "\n" not in str(caught.value)


def test_images_of_a_wrong_shape_are_refused(spec):
    net = build_student("convnet:width=4", spec(3, 8), seed=0)
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 3, 16, 16))
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 4, 8, 8))
