"""Generators: published sizes, any image size, and images that depend on (seed, class, index) only."""

import copy
import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.errors import InputError
from dim.io import load_tensors, save_tensors
from dim.nets.generator import Generator, build_generator, occurrence
from dim.nets.generator_file import load_generator_file, save_generator_file
from dim.nets.generators.dim2023 import resolution_chain
from dim.recipes.load import load_recipe
from dim.sampler import stored_bytes

PUBLISHED = load_recipe("cifar10-dim2023").generator
SMALL = GeneratorConfig(name="dim2023", width=4, latent_dim=3)


def _trained(spec, config: GeneratorConfig = SMALL, seed: int = 0):
    """A generator in evaluation mode whose running statistics are those of a batch, so that latents show in its images."""
    net = build_generator(config, spec, seed=seed)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    z = torch.randn(8, config.latent_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        net.train()(z, torch.arange(8) % spec.num_classes)
    return net.eval()


def test_published_parameter_count(spec):
    net = build_generator(PUBLISHED, spec(3, 32, 10), seed=0)
    assert sum(parameter.numel() for parameter in net.parameters()) == 3_559_363


@pytest.mark.parametrize("size", [8, 28, 30, 32, 64, (20, 28)])
@pytest.mark.parametrize(("channels", "classes"), [(1, 2), (3, 10), (3, 100)])
def test_every_size_and_number_of_classes(spec, size, channels, classes):
    data = spec(channels, size, classes)
    net = build_generator(SMALL, data, seed=0)
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    images = net(z, torch.tensor([0, 1, 0, classes - 1]))
    assert images.shape == (4, *data.image_shape)
    assert images.dtype == torch.float32
    assert images.abs().max() <= 1


@pytest.mark.parametrize("size", [1, 4, 7, 8, 28, 30, 32, 33, 64, 224])
def test_resolutions_grow_to_the_image_by_at_most_two(size):
    chain = resolution_chain(size, 32)
    assert chain[-1] == (size, 32)
    assert len(chain) >= 4
    assert max(chain[0]) <= 7
    for small, large in itertools.pairwise(chain):
        assert all(little == -(-big // 2) for little, big in zip(small, large, strict=True))


def test_label_and_noise_both_matter(spec):
    net = _trained(spec(), GeneratorConfig(name="dim2023", width=16, latent_dim=3))
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    y = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        assert not torch.allclose(net(z, y)[0], net(z, y)[1], rtol=0, atol=0.01)
        assert not torch.allclose(net(z, y), net(z, y + 1), rtol=0, atol=0.01)


def test_the_label_enters_one_hot_beside_the_noise(spec):
    """Label k adds column k of the first layer, times the label scale."""
    config = dataclasses.replace(SMALL, label_scale=2.5)
    net = build_generator(config, spec(), seed=0)
    seen = []
    net.linear.register_forward_hook(lambda module, inputs, output: seen.append(output))
    z, y = torch.randn(3, 3, generator=torch.Generator().manual_seed(2)), torch.tensor([2, 0, 3])
    net(z, y)
    expected = z @ net.linear.weight[:, 4:].T + 2.5 * net.linear.weight[:, :4].T[y] + net.linear.bias
    torch.testing.assert_close(seen[0], expected)


def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone(spec):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (build_generator(SMALL, spec(), seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


@pytest.fixture(scope="module")
def net(spec):
    return _trained(spec(3, 16, 5), GeneratorConfig(name="dim2023", width=24, latent_dim=6))


def _all(ipc: int, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and indices of the first images of every class, class by class."""
    return torch.arange(classes).repeat_interleave(ipc), torch.arange(ipc).repeat(classes)


def test_images_are_the_network_on_the_latents(net):
    labels, indices = _all(4)
    images = net.images(labels, indices, seed=3)
    with torch.no_grad():
        expected = net(net.latents(labels, indices, seed=3), labels)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-5)


def test_images_do_not_depend_on_what_else_is_asked_for(net):
    """Bitwise: subsets, other orders, single images and repeats. Nested sets stand on this."""
    labels, indices = _all(9)
    together = net.images(labels, indices, seed=3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.images(labels[order], indices[order], seed=3), together[order])
    for subset in (order[:7], order[:23], torch.tensor([4, 4, 4, 30])):
        assert torch.equal(net.images(labels[subset], indices[subset], seed=3), together[subset])
    for i in range(0, len(labels), 4):
        assert torch.equal(net.images(labels[i : i + 1], indices[i : i + 1], seed=3)[0], together[i])


def test_small_sets_are_the_beginning_of_large_ones(net):
    labels, indices = _all(10)
    large = net.images(labels, indices, seed=0).view(5, 10, 3, 16, 16)
    assert torch.equal(net.images(*_all(3), seed=0).view(5, 3, 3, 16, 16), large[:, :3])


def test_images_of_other_seeds_classes_and_indices_differ(net):
    labels, indices = _all(8)
    both = torch.cat([net.images(labels, indices, seed=seed) for seed in (0, 1)])
    assert len(torch.unique(both, dim=0)) == len(both)


_OTHER_THREADS = """
import sys, torch
from dim.io import digest, load_tensors
from dim.nets.generator_file import load_generator_file
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    net = load_generator_file(sys.argv[1])
    labels, indices = torch.arange(5).repeat_interleave(9), torch.arange(9).repeat(5)
    images = net.images(labels, indices, seed=3)
    assert torch.get_num_threads() == threads
    print(digest({"all": images}), digest({"all": net.images(labels[::7], indices[::7], seed=3)}))
"""


def test_images_do_not_depend_on_process_or_threads(net, tmp_path):
    """Bitwise in another process with 1, 2 and 3 threads."""
    config = GeneratorConfig(name="dim2023", width=24, latent_dim=6)
    path = tmp_path / "generator.safetensors"
    save_generator_file(path, net, config=config, data=DataConfig(), protocol=ProtocolConfig(), about={})
    done = subprocess.run([sys.executable, "-c", _OTHER_THREADS, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split("\n")[:3]
    assert len(set(lines)) == 1, lines


class _Sensitive(Generator):
    """The worst that kernels do: values depend on an image's row, on the batch around it and on the number of threads."""

    def __init__(self, spec) -> None:
        super().__init__(spec, 2)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, z, y):
        rows = torch.arange(len(z)) / 7 + len(z) / 3 + torch.get_num_threads() / 5
        return (z[:, 0] + y + rows).view(-1, 1, 1, 1).expand(-1, *self.spec.image_shape)


def test_images_do_not_depend_on_their_company_even_with_sensitive_kernels(spec):
    net = _Sensitive(spec(1, 4, 5))
    labels, indices = _all(17)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = net.images(labels, indices, seed=0)
        for count in (1, 2):
            torch.set_num_threads(count)
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(count))
            for subset in (order, order[:30], order[:3], order[5:6]):
                assert torch.equal(net.images(labels[subset], indices[subset], seed=0), together[subset])
    finally:
        torch.set_num_threads(threads)


def test_images_restore_mode_and_threads(net):
    threads = torch.get_num_threads()
    labels, indices = _all(7)
    expected = net.eval().images(labels, indices, seed=0)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    assert not net.training
    assert torch.equal(net.train().images(labels, indices, seed=0), expected)
    assert net.training
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert torch.get_num_threads() == threads
    net.eval()


def test_mode_and_threads_are_restored_after_an_error(net, monkeypatch):
    threads = torch.get_num_threads()

    def fail(*_, **__):
        raise RuntimeError("inside")

    monkeypatch.setattr(net, "latents", fail)
    net.train()
    with pytest.raises(RuntimeError, match="inside"):
        net.images(*_all(7), seed=0)
    assert net.training
    assert torch.get_num_threads() == threads
    net.eval()


def test_sample_numbers_the_images_of_each_class(net):
    labels = [3, 1, 3, 3, 0]
    expected = net.images(torch.tensor(labels), torch.tensor([0, 0, 1, 2, 0]), seed=7)
    assert torch.equal(net.sample(torch.tensor(labels), seed=7), expected)
    assert torch.equal(net.sample(labels, seed=7), expected)


@pytest.mark.parametrize(
    "labels",
    [torch.tensor(2), 2, np.int32(2), [2], (2.0,), ["class 2"], "class 2", torch.eye(5)[2:3], np.eye(5)[[2]], [[0, 0, 1, 0, 0]]],
    ids=str,
)
def test_one_label_may_have_any_usual_form(net, labels):
    assert torch.equal(net.sample(labels, seed=7), net.images(torch.tensor([2]), torch.tensor([0]), seed=7))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.5]), r"image 0 has label .*0\.5.*: expected a number from 0 to 4"),
        (torch.tensor([[0.5, 0.5, 0, 0, 0]]), "one 1 among zeros"),
        (["class 1", "class 7"], "image 1 has label 'class 7'"),
        (None, "label"),
        (torch.tensor([4, 5]), "label 5 is out of range"),
    ],
    ids=str,
)
def test_labels_of_no_usual_form_are_refused(net, labels, message):
    with pytest.raises(InputError, match=message):
        net.sample(labels)


@pytest.mark.parametrize("name", ["dim2023", "gan", "diffusion"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_generator_in_half_precision_makes_nearly_the_same_images(spec, name, dtype):
    if name == "dim2023":
        whole = _trained(spec(3, 16, 5), GeneratorConfig(name=name, width=24, latent_dim=6))
    else:
        whole = build_generator(GeneratorConfig(name=name, width=8), spec(3, 16, 5), seed=0).eval()
    half = copy.deepcopy(whole).to(dtype)
    labels, indices = _all(3)
    images, close = (each.images(labels, indices, seed=0) for each in (whole, half))
    assert close.dtype == torch.float32
    # bfloat16 has eight bits, of which a network keeps the larger part.
    assert (images - close).abs().mean() < (0.02 if dtype == torch.bfloat16 else 0.003)
    assert half.pixels(labels, indices, seed=0).dtype == torch.uint8


@pytest.mark.parametrize("way", ["double", "autocast", "inference", "training"])
def test_other_ways_of_computing_change_at_most_a_rounding(net, way):
    labels, indices = _all(2)
    plain, net = net.images(labels, indices, seed=0), copy.deepcopy(net)
    if way == "double":
        images = net.double().images(labels, indices, seed=0)
    elif way == "training":
        images = net.train().images(labels, indices, seed=0)
        assert net.training
    else:
        with torch.autocast("cpu", torch.bfloat16) if way == "autocast" else torch.inference_mode():
            images = net.images(labels, indices, seed=0)
    assert images.dtype == torch.float32
    assert (images - plain).abs().max() < (1e-4 if way == "double" else 1e-7)


@pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
@pytest.mark.parametrize("kind", ["complex64", "float8_e4m3fn", "mixed", "meta"])
def test_weights_that_nothing_can_be_computed_in_are_refused(net, kind):
    net = copy.deepcopy(net)
    if kind == "mixed":
        next(net.parameters()).data = next(net.parameters()).data.half()
    else:
        net = net.to("meta") if kind == "meta" else net.to(getattr(torch, kind))
    with pytest.raises(InputError, match=r"the generator's weights are .*: expected one of torch.float16, .*; .float") as caught:
        net.sample([0])
    assert {"mixed": "torch.float16 and torch.float32", "meta": "without values"}.get(kind, kind) in str(caught.value)


@pytest.mark.parametrize("seed", [1.5, None, "a", True, 2**70])
def test_a_seed_that_is_no_whole_number_is_refused(net, seed):
    with pytest.raises(InputError, match=f"^seed is {seed!r}: expected a whole number"):
        net.sample([0], seed=seed)
    assert torch.equal(net.sample([0], seed=2.0), net.sample([0], seed=2))


def test_nothing_asked_for_gives_nothing(net):
    assert net.sample([]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("labels", "indices", "message"),
    [([0, 5], [0, 0], "label 5.*0 to 4"), ([0, -1], [0, 0], "label -1"), ([0, 1], [0, -2], "index -2")],
)
def test_labels_and_indices_out_of_range_are_refused(net, labels, indices, message):
    with pytest.raises(InputError, match=message):
        net.images(torch.tensor(labels), torch.tensor(indices), seed=0)


def test_occurrence_counts_earlier_equals():
    assert occurrence(torch.tensor([3, 5, 3, 3])).tolist() == [0, 0, 1, 2]
    values = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(0))
    listed = values.tolist()
    assert occurrence(values).tolist() == [listed[:i].count(value) for i, value in enumerate(listed)]
    assert occurrence(torch.empty(0, dtype=torch.int64)).tolist() == []


def _save(path, net, config=SMALL) -> None:
    data = DataConfig(dataset="folder", root="/home/someone/private", resolution=16, channels=3)
    save_generator_file(path, net, config=config, data=data, protocol=ProtocolConfig(epochs=3), about={"steps": 9})


def test_a_generator_file_needs_nothing_else(spec, tmp_path):
    path = tmp_path / "g.safetensors"
    net = _trained(spec(3, 16))
    _save(path, net)
    loaded = load_generator_file(path)
    assert loaded.spec == net.spec
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(loaded.sample([0, 1, 2, 2]), net.sample([0, 1, 2, 2]), rtol=1e-4, atol=1e-5)
    assert loaded.info["about"] == {"steps": 9}
    assert loaded.info["protocol"]["epochs"] == 3
    assert b"private" not in path.read_bytes(), "where the data lay is nobody's business"


@pytest.mark.parametrize(
    ("change", "message"), [({"kind": "student"}, "holds 'student'"), ({"format": 99}, "format 99.*upgrade")]
)
def test_files_of_another_kind_or_from_the_future_are_refused(spec, tmp_path, change, message):
    path = tmp_path / "g.safetensors"
    _save(path, _trained(spec(3, 16)))
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, metadata | change)
    with pytest.raises(InputError, match=message):
        load_generator_file(path)


def test_gradients_reach_the_latents(spec):
    """Refinement of latents stands on this."""
    net = _trained(spec(1, 8)).double()
    z = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    y = torch.tensor([0, 1])
    target = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: F.mse_loss(net(v, y), target), (z,))


def test_images_are_made_around_anchors(net):
    """The first are the anchors' own, whatever the seed; later ones are new, as near as the spread says."""
    net = copy.deepcopy(net)
    labels, indices = _all(7)
    anchors = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(5))
    own = net.latents(labels, indices, seed=3)
    assert net.anchor(anchors, 0.5) is net
    latents = net.latents(labels, indices, seed=3).view(5, 7, 6)
    assert torch.equal(latents[:, :3], anchors)
    torch.testing.assert_close(latents[:, 3:], anchors[:, [0, 1, 2, 0]] + 0.5 * own.view(5, 7, 6)[:, 3:])
    first = indices < 3
    several = [net.images(labels, indices, seed=seed) for seed in (3, 4)]
    assert torch.equal(several[0][first], several[1][first])
    assert (several[0] != several[1])[~first].flatten(1).any(1).all()
    net.anchor(anchors, 0.0)
    images = net.latents(labels, indices, seed=3).view(5, 7, 6)
    assert torch.equal(images[:, 3:6], images[:, :3])
    for shape in ((5, 3), (4, 3, 6), (5, 0, 6)):
        with pytest.raises(InputError, match=r"anchors have shape .*: expected \(5, n, 6\)"):
            net.anchor(torch.zeros(shape), 0.5)
    with pytest.raises(InputError, match="latents are 5 wide: expected 6, or 11 with class vectors"):
        net.anchor(torch.zeros(5, 3, 5), 0.5)
    with pytest.raises(InputError, match=r"spread is -1: expected 0 or more"):
        net.anchor(anchors, -1)
    wide = F.pad(anchors, (0, 5), value=0.5)
    around = net.anchor(wide, 0.5).latents(labels, indices, seed=3).view(5, 7, 11)
    assert torch.equal(around[:, :, :6], latents)
    assert (around[:, :, 6:] == 0.5).all(), "nothing is added to class vectors"


@pytest.mark.parametrize("name", ["gan", "dim2023"])
def test_latents_may_move_the_class_vectors_of_their_images(spec, name):
    """Moved to another class's, they make that class's image."""
    net = _trained(
        spec(1, 16, 3), GeneratorConfig(name=name, width=8, latent_dim=6, label_scale=2.0 if name == "dim2023" else 1.0)
    )
    vectors = net.embedding.weight if name == "gan" else 2 * torch.eye(3)
    labels, indices = _all(4, 3)
    z = net.latents(labels, indices, seed=1)
    still, other = F.pad(z, (0, net.class_dim)), (labels + 1) % 3
    plain = net.images(labels, indices, seed=1)
    assert torch.equal(net.images(labels, indices, seed=1, latents=still), plain)
    moved = torch.cat((z, (vectors[other] - vectors[labels]).detach()), dim=1)
    elsewhere = net.images(other, indices, seed=1, latents=z)
    assert (elsewhere - plain).abs().max() > 0.01
    torch.testing.assert_close(net.images(labels, indices, seed=1, latents=moved), elsewhere, rtol=1e-4, atol=1e-5)
    for take in (lambda z: net.images(labels, indices, seed=1, latents=z), lambda z: net(z, labels)):
        with pytest.raises(InputError, match=f"latents are 7 wide: expected 6, or {6 + net.class_dim} with class vectors"):
            take(torch.zeros(12, 7))


@pytest.mark.parametrize("width", [6, 12])
def test_an_anchored_generator_is_stored_with_its_anchors(spec, tmp_path, width):
    config = GeneratorConfig(name="gan", width=4, latent_dim=6)
    net = build_generator(config, spec(1, 8, 3), seed=0).eval()
    plain = stored_bytes(net)
    net.anchor(torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0)), 0.25)
    assert stored_bytes(net) == plain + 3 * 2 * width * 4 + 4
    path = tmp_path / "generator.safetensors"
    save_generator_file(path, net, config=config, data=DataConfig(), protocol=ProtocolConfig(), about={})
    again = load_generator_file(path)
    labels = torch.arange(12) % 3
    assert torch.equal(again.sample(labels, seed=9), net.to(memory_format=torch.channels_last).sample(labels, seed=9))
    assert float(again.spread) == 0.25
