"""Trajectory matching as an objective: what it draws, and that it leaves the gradients of what it drew."""

import pytest
import torch
import torch.nn.functional as F

from dim import rng
from dim.augment import Augment
from dim.config import LabelsConfig, TrajectoryConfig
from dim.errors import InputError
from dim.objectives.trajectory import TrajectoryMatching, window_of
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.hypergrad import hypergradient
from dim.trajectory.window import Window

COUNT = 6  # images, two of each class


class Line:
    """A path through given weights."""

    def __init__(self, points: torch.Tensor) -> None:
        self.points, self.last = points, float(len(points) - 1)

    def theta(self, t: float) -> torch.Tensor:
        before = min(int(t), len(self.points) - 2)
        return torch.lerp(self.points[before], self.points[before + 1], t - before)


@pytest.fixture(scope="module")
def network(spec):
    return FlatNetwork("convnet:width=4,depth=1", spec(1, 4, 3))


@pytest.fixture(scope="module")
def paths(network):
    """Three random walks of seven moments."""
    found = []
    for seed in range(3):
        steps = 0.05 * torch.randn(6, network.size, generator=torch.Generator().manual_seed(seed))
        found.append(Line(torch.cat((network.initial(seed)[None], network.initial(seed) + steps.cumsum(0)))))
    return found


@pytest.fixture
def images():
    return torch.randn(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(7)).requires_grad_()


def targets_of(kind: str) -> torch.Tensor:
    if kind == "learned":
        return torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(8)).requires_grad_()
    return torch.arange(COUNT) % 3


def objective(paths, network, *, labels: str = "hard", seed: int = 3, **trajectory) -> TrajectoryMatching:
    """Four steps from one of the first three moments, and two moments on."""
    settings = {"steps": 4, "epochs": 2, "max_start": 3, "augment": "", **trajectory}
    step_size = torch.tensor(0.05, requires_grad=True)
    made = LabelsConfig(kind=labels)
    return TrajectoryMatching(paths, network, TrajectoryConfig(**settings), made, step_size=step_size, seed=seed)


def expert_of(matching: TrajectoryMatching, step: int, place: int = 0) -> Line:
    return matching.paths[rng.fold(3, "trajectory-expert", step, place) % len(matching.paths)]


def augmentation(matching: TrajectoryMatching, network, step: int, member: int = 0):
    """The published augmentation of every student step, replayed from its seeds."""
    augment = Augment(matching.config.augment, network.spec)
    if not augment.families:
        return None

    def transform(index: int, x: torch.Tensor) -> torch.Tensor:
        return augment(x, rng.generator(3, "trajectory-augment", step, member, index))

    return transform


# --- gradients ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["", "color|crop|scale|rotate"])
@pytest.mark.parametrize("gradient", ["adjoint", "unroll", "frozen"])
@pytest.mark.parametrize("kind", ["hard", "learned", "teacher"])
def test_gradients_are_those_of_the_hypergradient(network, paths, images, kind, gradient, augment):
    matching = objective(paths, network, labels=kind, gradient=gradient, augment=augment, batch_size=4)
    targets = targets_of(kind)
    for step in (0, 5):
        images.grad = targets.grad = matching.step_size.grad = None
        losses = matching.accumulate(images, targets, real=None, step=step)
        path = expert_of(matching, step)
        begin, end = matching.window.draw(3, step, 0, path.last)
        student = targets.detach()
        if kind == "teacher":
            student = network.logits(path.theta(end), images.detach()).softmax(1)
        expected = hypergradient(
            network.loss_of_label_logits if kind == "learned" else network.loss,
            path.theta(begin),
            path.theta(end),
            images.detach(),
            student,
            0.05,
            matching.batches(COUNT, step),
            method=gradient,
            transform=augmentation(matching, network, step),
        )
        assert losses.keys() == {"trajectory"}
        assert not losses["trajectory"].requires_grad
        torch.testing.assert_close(losses["trajectory"], expected.loss)
        torch.testing.assert_close(images.grad, expected.images)
        torch.testing.assert_close(matching.step_size.grad, expected.step_size)
        assert images.grad.abs().max() > 0
        assert matching.step_size.grad != 0
        if kind == "learned":
            torch.testing.assert_close(targets.grad, expected.targets)
            assert targets.grad.abs().max() > 0
        else:
            assert targets.grad is None


def test_the_direction_alone_is_matched_where_that_is_asked(network, images):
    """Along a path that leads where the student goes, and three times as far."""
    labels, start = targets_of("hard"), network.initial(0)

    def student(matching: TrajectoryMatching) -> torch.Tensor:
        theta = start
        for batch in matching.batches(COUNT, 0):
            leaf = theta.clone().requires_grad_()
            theta = theta - 0.05 * torch.autograd.grad(network.loss(leaf, images.detach()[batch], labels[batch]), leaf)[0]
        return theta - start

    settings = {"distance": "direction", "batch_size": 4, "max_start": 1, "epochs": 1}
    moved = student(objective([Line(torch.stack((start, start)))], network, **settings))
    noise = torch.randn(network.size, generator=torch.Generator().manual_seed(1))
    wanted = 3 * moved + moved.norm() * noise / noise.norm()
    matching = objective([Line(torch.stack((start, start + wanted)))], network, **settings)
    losses = matching.accumulate(images, labels, real=None, step=0)
    cosine = torch.nn.functional.cosine_similarity(moved, wanted, dim=0)
    assert cosine > 0.9
    torch.testing.assert_close(losses["trajectory"], 1 - cosine**2)
    expected = hypergradient(
        network.loss, start, start + wanted, images.detach(), labels, 0.05, matching.batches(COUNT, 0), distance="direction"
    )
    torch.testing.assert_close(images.grad, expected.images)
    assert images.grad.abs().max() > 0


def unrolled(network, path, begin, end, images, loss_of, beta, batches):
    """The loss by plain autograd through a student's steps."""
    start, goal = path.theta(begin), path.theta(end)
    theta = start.clone().requires_grad_()
    for batch in batches:
        theta = theta - beta * torch.autograd.grad(loss_of(theta, images, batch), theta, create_graph=True)[0]
    return (theta - goal).square().sum() / (start - goal).square().sum()


@pytest.mark.parametrize("gradient", ["adjoint", "unroll"])
@pytest.mark.parametrize("kind", ["hard", "learned"])
def test_gradients_are_exact(network, paths, images, kind, gradient):
    """Against autograd, without the functions that the objective is made of."""
    matching, targets = objective(paths, network, labels=kind, gradient=gradient), targets_of(kind)
    losses = matching.accumulate(images, targets, real=None, step=1)
    path = expert_of(matching, 1)
    begin, end = matching.window.draw(3, 1, 0, path.last)
    assert end == begin + 2

    x = images.detach().clone().requires_grad_()
    y = targets.detach().clone().requires_grad_(kind == "learned")
    beta = torch.tensor(0.05, requires_grad=True)

    def loss_of(theta, x, batch):
        logits = network.logits(theta, x[batch])
        if kind == "hard":
            return F.cross_entropy(logits, y[batch])
        return -(y[batch].softmax(1) * logits.log_softmax(1)).sum(1).mean()

    loss = unrolled(network, path, begin, end, x, loss_of, beta, matching.batches(COUNT, 1))
    loss.backward()
    torch.testing.assert_close(losses["trajectory"], loss.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(images.grad, x.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(matching.step_size.grad, beta.grad, rtol=1e-3, atol=1e-6)
    if kind == "learned":
        torch.testing.assert_close(targets.grad, y.grad, rtol=1e-3, atol=1e-6)


def test_the_gradient_points_uphill(network, paths, images):
    matching = objective(paths, network, max_start=1)
    labels = targets_of("hard")
    before = matching.accumulate(images, labels, real=None, step=0)["trajectory"]
    moved = (images - 0.05 * images.grad / images.grad.norm()).detach().requires_grad_()
    after = matching.accumulate(moved, labels, real=None, step=0)["trajectory"]
    assert after < before
    slope = 0.05 * images.grad.norm()
    torch.testing.assert_close(before - after, slope, rtol=0.2, atol=0)


def test_gradients_are_added_to_what_is_there(network, paths, images):
    matching, targets = objective(paths, network, labels="learned"), targets_of("learned")
    leaves = (images, targets, matching.step_size)
    matching.accumulate(images, targets, real=None, step=2)
    once = [leaf.grad.clone() for leaf in leaves]
    values = [leaf.detach().clone() for leaf in leaves]
    matching.accumulate(images, targets, real=None, step=2)
    for leaf, first, value in zip(leaves, once, values, strict=True):
        torch.testing.assert_close(leaf.grad, 2 * first)
        assert torch.equal(leaf, value)  # only gradients change


def test_teacher_labels_follow_the_images(network, paths, images):
    """They are probabilities of the target weights, made afresh at every step."""
    matching = objective(paths, network, labels="teacher")
    goal = paths[0].theta(2.0)
    first = matching._targets(goal, images, targets_of("teacher"))
    torch.testing.assert_close(first, network.logits(goal, images.detach()).softmax(1))
    torch.testing.assert_close(first.sum(1), torch.ones(COUNT))
    other = matching._targets(goal, 2 * images, targets_of("teacher"))
    assert (first - other).abs().max() > 1e-3


# --- several experts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "learned", "teacher"])
@pytest.mark.parametrize("together", [False, True])
def test_several_experts_are_averaged(network, paths, images, together, kind):
    matching = objective(paths, network, labels=kind, experts=3, together=together, augment="crop_scale", batch_size=4)
    targets = targets_of(kind)
    losses = matching.accumulate(images, targets, real=None, step=4)
    chosen = [expert_of(matching, 4, place) for place in range(3)]
    members = [0 if together else member for member in range(3)]
    # Side by side they share start point, batches and augmentation, and the labels are the mean of the teachers'.
    stretches = [matching.window.draw(3, 4, member, 6.0) for member in members]
    ends = [path.theta(end) for path, (_, end) in zip(chosen, stretches, strict=True)]
    teachers = torch.stack([network.logits(theta, images.detach()).softmax(1) for theta in ends])
    parts = []
    for place, (path, (begin, _), member) in enumerate(zip(chosen, stretches, members, strict=True)):
        student = targets.detach()
        if kind == "teacher":
            student = teachers.mean(0) if together else teachers[place]
        parts.append(
            hypergradient(
                network.loss_of_label_logits if kind == "learned" else network.loss,
                path.theta(begin),
                ends[place],
                images.detach(),
                student,
                0.05,
                matching.batches(COUNT, 4, member),
                transform=augmentation(matching, network, 4, member),
            )
        )
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(losses["trajectory"], torch.stack([part.loss for part in parts]).mean(), **close)
    torch.testing.assert_close(images.grad, torch.stack([part.images for part in parts]).mean(0), **close)
    torch.testing.assert_close(matching.step_size.grad, torch.stack([part.step_size for part in parts]).mean(), **close)
    if kind == "learned":
        torch.testing.assert_close(targets.grad, torch.stack([part.targets for part in parts]).mean(0), **close)


def test_all_experts_get_their_turn(network, paths):
    matching = objective(paths, network)
    assert {expert_of(matching, step) for step in range(30)} == set(paths)


# --- draws -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "steps", "size"), [(0, 3, 10), (10, 2, 10), (99, 2, 10), (4, 5, 4), (3, 7, 3), (1, 12, 1), (5, 1, 5)]
)
def test_batches_are_slices_of_permutations_of_one_size(network, paths, batch_size, steps, size):
    batches = objective(paths, network, batch_size=batch_size, steps=steps).batches(10, step=0)
    assert [len(batch) for batch in batches] == [size] * steps
    order = torch.cat(batches)
    assert order.dtype == torch.int64
    rounds = list(order.split(10))
    for whole in rounds[:-1]:
        assert sorted(whole.tolist()) == list(range(10))
    assert len(set(rounds[-1].tolist())) == len(rounds[-1])
    if len(rounds) > 1 and len(rounds[-1]) == 10:
        assert not torch.equal(rounds[0], rounds[-1])  # shuffled anew


def test_batches_are_a_function_of_seed_step_and_member(network, paths):
    matching = objective(paths, network, batch_size=5, steps=8)
    first = torch.cat(matching.batches(20, 3, 1))
    assert torch.equal(first, torch.cat(objective(paths, network, batch_size=5, steps=8).batches(20, 3, 1)))
    others = [matching.batches(20, 4, 1), matching.batches(20, 3, 0)]
    others.append(objective(paths, network, seed=4, batch_size=5, steps=8).batches(20, 3, 1))
    assert all(not torch.equal(first, torch.cat(other)) for other in others)


def test_the_same_step_gives_the_same_result_and_another_step_another(network, paths, images):
    gradients = []
    for step in (6, 6, 7):
        matching = objective(paths, network, augment="color|crop|scale", batch_size=3)
        for other in range(step % 2):  # what came before does not matter
            matching.accumulate(images, targets_of("hard"), real=None, step=other)
        images.grad = matching.step_size.grad = None
        loss = matching.accumulate(images, targets_of("hard"), real=None, step=step)["trajectory"]
        gradients.append((loss, images.grad.clone(), matching.step_size.grad))
    assert all(torch.equal(first, second) for first, second in zip(gradients[0], gradients[1], strict=True))
    assert all(not torch.equal(first, second) for first, second in zip(gradients[0], gradients[2], strict=True))


def test_the_window_is_the_one_that_is_configured():
    config = TrajectoryConfig(min_start=1, max_start=9, max_start_at_first=4, grows_for=50, epochs=3, continuous=True)
    expected = Window(low=1, high=9, span=3, continuous=True, high_at_first=4, grows_for=50)
    assert window_of(config) == expected


def test_start_points_stay_in_a_window_that_grows(network, paths, images):
    """Loss and gradient at iteration 0 are those of a window that does not grow beyond its first bound."""
    grows = objective(paths, network, max_start=4, max_start_at_first=1, grows_for=100)
    fixed = objective(paths, network, max_start=1)
    own = grows.accumulate(images, targets_of("hard"), real=None, step=0)["trajectory"]
    assert own == fixed.accumulate(images, targets_of("hard"), real=None, step=0)["trajectory"]
    late = {grows.window.draw(3, step, 0, 6.0)[0] for step in range(200, 260)}
    assert late == {0.0, 1.0, 2.0, 3.0}


# --- what is refused ---------------------------------------------------------------------------------------------------------


def test_a_window_beyond_a_path_is_refused(network, paths):
    objective(paths, network, max_start=5, epochs=2)  # from moment 4 to 6, the last
    with pytest.raises(InputError, match=r"reaches epoch 7 and the experts were recorded to 6.*--trajectory\.max-start"):
        objective(paths, network, max_start=6, epochs=2)
    with pytest.raises(InputError, match="recorded to 3"):
        objective([*paths, Line(paths[0].points[:4])], network, max_start=5, epochs=2)


def test_an_unknown_augmentation_is_refused(network, paths):
    with pytest.raises(InputError, match="'crops'"):
        objective(paths, network, augment="crops")
