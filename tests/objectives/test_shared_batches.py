"""What processes make of a batch that they share is what one process makes of it: every loss, gradient and draw."""

import pytest
import torch
from launching import launch, results
from torch import Tensor

from dim import rng
from dim.config import (
    DISTANCES,
    AdversarialConfig,
    DataConfig,
    DiscriminatorConfig,
    FlowConfig,
    GeneratorConfig,
    MatchingConfig,
    PathMatchingConfig,
    PoolConfig,
)
from dim.data.real import load_data
from dim.nets.discriminators import Discriminator, ProjectionDiscriminator, build_discriminator
from dim.nets.generator import build_generator
from dim.objectives.adversaries.acgan_wgangp import Adversarial
from dim.objectives.adversaries.relativistic import Relativistic
from dim.objectives.denoising import Denoising
from dim.objectives.flow import FlowMatching
from dim.objectives.logit import PoolMatching
from dim.objectives.path_matching import PathMatching
from dim.pool import build_pool
from dim.processes import ALONE, Processes, join
from dim.spec import DataSpec

BATCH, STEP = 12, 3
POOL = PoolConfig(students=("convnet:width=4",), members=2, augment="color_crop")


class Shared:
    """A batch of real images and of generated ones, of which this process has its share, and what is made of it."""

    def __init__(self, processes: Processes, spec: DataSpec) -> None:
        source = torch.Generator().manual_seed(5)
        shape = (BATCH, *spec.image_shape)
        drawn = [torch.rand(shape, generator=source) * 2 - 1 for _ in range(2)]
        self.processes, self.spec = processes, spec
        self.real, images = map(processes.part, drawn)
        self.images = images.clone().requires_grad_()
        self.labels = processes.part(torch.arange(BATCH) % spec.num_classes)

    def made(self, losses: dict[str, Tensor], *networks: torch.nn.Module, trained: bool = False) -> dict[str, Tensor]:
        """Mean losses, weights (or their mean gradients, if they are not trained yet), and the gradients of all images."""
        found = {name: self.processes.mean(loss) for name, loss in losses.items()}
        if self.images.grad is not None:  # as the mean over processes weights them
            found["images"] = self.processes.whole(self.images.grad / self.processes.world)
        for number, network in enumerate(networks):
            values = list(network.parameters())
            if not trained:
                values = [value.grad for value in values if value.grad is not None]
                self.processes.average(values)
            found[f"network {number}"] = torch.cat([value.detach().flatten() for value in values])
        return found


def adversary(shared: Shared, kind: type, network: type, loss: str, **options) -> dict[str, Tensor]:
    processes, spec = shared.processes, shared.spec
    net = build_discriminator(network, DiscriminatorConfig(width=4), spec, seed=0)
    finish = lambda parameters: processes.average([p.grad for p in parameters])  # noqa: E731
    config = AdversarialConfig(loss=loss, augment="color|crop", **options)
    more = {"gamma": lambda step: 0.5} if kind is Relativistic else {}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    objective = kind(net, optimizer, config, spec, seed=0, finish=finish, processes=processes, **more)
    if kind is Relativistic:
        objective.probability = torch.tensor(0.5)
    losses = objective.advance(shared.images, shared.labels, real=shared.real, step=STEP)
    losses |= objective.accumulate(shared.images, shared.labels, real=shared.real, step=STEP)
    return shared.made(losses, net, trained=True)


def flow(shared: Shared) -> dict[str, Tensor]:
    """Three of the twelve learn mean velocities, so that two processes have one and two of them."""
    net = build_generator(GeneratorConfig(name="diffusion", width=4), shared.spec, seed=0)
    with torch.no_grad():  # it begins with zeros, of which nothing depends on the draws
        for number, value in enumerate(net.parameters()):
            value += 0.1 * torch.randn(value.shape, generator=rng.generator(0, "test", number))
    objective = FlowMatching(FlowConfig(mean_share=0.25), few_steps_from=0, seed=0, processes=shared.processes)
    return shared.made(objective.regress(net, shared.real, shared.labels, step=STEP), net)


def denoising(shared: Shared, folder: str) -> dict[str, Tensor]:
    config = GeneratorConfig(name="pipeline", pretrained=folder, pretrained_classes=(0, 1, 2), steps=2)
    net = build_generator(config, DataSpec.from_dict({**shared.spec.to_dict(), "class_names": list("abc")}), seed=0)
    objective = Denoising(label_dropout=0.3, seed=0, processes=shared.processes)
    return shared.made(objective.regress(net, shared.real, shared.labels % 3, step=STEP), net.denoiser)


def pooled(shared: Shared, data, **options) -> dict[str, Tensor]:
    """Upkeep of a member, and matching through it."""
    processes = shared.processes
    pool = build_pool(POOL, data, steps_per_epoch=4, seed=0, processes=processes)
    losses = {"pool": pool.advance(shared.real, shared.labels, STEP)}
    config = MatchingConfig(augment="color_crop", **options)
    matching = PoolMatching(pool, config, shared.spec, seed=0, processes=processes)
    losses |= matching.accumulate(shared.images, shared.labels, real=shared.real, step=STEP)
    return shared.made(losses, pool.draw(STEP), trained=True)


def path(shared: Shared, data, store: str) -> dict[str, Tensor]:
    settings = {"weight": 0.5, "steps": 3, "epochs": 0.5, "step_size": 0.05, "batch_size": 5}
    config = PathMatchingConfig(experts=store, **settings)
    objective = PathMatching(config, data, first_step=STEP, seed=0, processes=shared.processes)
    return shared.made(objective.accumulate(shared.images, shared.labels, real=shared.real, step=STEP))


def everything(folder: str, store: str, processes: Processes | None = None) -> dict[str, dict[str, Tensor]]:
    """What this process makes of its share, by the name of the loss."""
    processes = join(cpu=True) if processes is None else processes
    data = load_data(DataConfig())
    shared = lambda: Shared(processes, data.spec)  # noqa: E731
    ada = {"augment_target": 0.5, "augment_images": 100}
    found = {
        "acgan-wgangp": adversary(shared(), Adversarial, Discriminator, "acgan-wgangp"),
        "relativistic": adversary(shared(), Relativistic, ProjectionDiscriminator, "relativistic", **ada),
        "flow": flow(shared()),
        "denoising": denoising(shared(), folder),
        "path_matching": path(shared(), data, store),
    }
    for distance in DISTANCES.names():
        outputs = "logits" if distance in ("means", "pairs") else "features"
        found[distance] = pooled(shared(), data, distance=distance, outputs=outputs)
    return found


@pytest.fixture(scope="module")
def made(digits_experts, pretrained, tmp_path_factory):
    """By one process, and by each of two."""
    folder = tmp_path_factory.mktemp("shared")
    pretrained(folder / "pipeline", grey=True)
    arguments = (str(folder / "pipeline"), str(digits_experts))
    return everything(*arguments, ALONE), results(launch(folder / "launch", everything, *arguments))


LOSSES = ("acgan-wgangp", "relativistic", "flow", "denoising", "path_matching", *DISTANCES.names())


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_make_what_one_makes(made, loss):
    alone, both = made
    assert alone.keys() == set(LOSSES)
    for found in both:
        assert found[loss].keys() == alone[loss].keys()
        for name, expected in alone[loss].items():
            largest = float(expected.abs().max())
            assert largest > 1e-6, f"{name} shows nothing"
            # Rounding of a sum is relative to its largest terms, and another on every processor.
            torch.testing.assert_close(found[loss][name], expected, rtol=1e-4, atol=1e-5 * max(1.0, largest))


def test_a_part_that_only_one_process_has_counts_in_both(made):
    """As the mean velocities of three images of twelve: a loss of either process has the same name and the right mean."""
    _, both = made
    assert all({"flow", "mean_flow"} <= found["flow"].keys() for found in both)
