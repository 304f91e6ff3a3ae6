"""The hypergradient: exact against one graph over all steps and against finite differences; `frozen` as it was published."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from dim import rng
from dim.augment import Augment
from dim.errors import InputError
from dim.trajectory.flat import FlatNetwork
from dim.trajectory.hypergrad import DISTANCES, METHODS, ORDERS, Derivatives, hypergradient

ONE_OF, ALL = "color|crop|cutout|flip|scale|rotate", "color_crop_cutout_flip_scale_rotate"
DRAWN, UNDRAWN = 7, 2  # images that batches are drawn from, and images that they leave out


@pytest.fixture(scope="module")
def network(spec) -> FlatNetwork:
    return FlatNetwork("convnet:width=16,depth=2", spec(3, 16, 4))


def _problem(network, steps: int, labels: str = "soft", students: int = 0) -> dict:
    """Arguments of `hypergradient`, in float64; `students` of them side by side, if any."""
    generator = torch.Generator().manual_seed(steps)
    start = torch.stack([network.initial(seed).double() for seed in range(students)]) if students else network.initial(0).double()
    count = DRAWN + UNDRAWN
    hard = torch.arange(count) % 4
    soft = torch.randn(count, 4, generator=generator, dtype=torch.float64).softmax(1)
    return {
        "theta_start": start,
        "theta_target": start + 0.05 * torch.randn(start.shape, generator=generator, dtype=torch.float64),
        "images": torch.randn(count, *network.spec.image_shape, generator=generator, dtype=torch.float64),
        "targets": soft if labels == "soft" else hard,
        "step_size": 0.1,
        "batches": [torch.cat((torch.randint(DRAWN, (3,), generator=generator), torch.tensor([2, 2]))) for _ in range(steps)],
    }


def _each(problem: dict) -> list[dict]:
    """One problem per student."""
    pairs = zip(problem["theta_start"], problem["theta_target"], strict=True)
    return [problem | {"theta_start": start, "theta_target": target} for start, target in pairs]


def _replayed(strategy: str, network, batches):
    if not strategy:
        return None
    augment = Augment(strategy, network.spec)
    draws = [augment.draw(len(batch), rng.generator(0, "test", step)) for step, batch in enumerate(batches)]
    return lambda step, images: augment.apply(images, draws[step])


def _last(loss, problem: dict, transform) -> torch.Tensor:
    """Where plain gradient descent takes a student."""
    theta = problem["theta_start"]
    for step, batch in enumerate(problem["batches"]):
        leaf = theta.clone().requires_grad_()
        loss(leaf, transform(step, problem["images"][batch]), problem["targets"][batch]).backward()
        theta = theta - problem["step_size"] * leaf.grad
    return theta


def _towards(loss, problem: dict, transform, way: float = 3.0) -> dict:
    """With the target roughly where the student goes, `way` times as far; for each of several students its own."""
    start = problem["theta_start"]
    if start.ndim == 2:
        goals = [_towards(loss, one, transform, way)["theta_target"] for one in _each(problem)]
        return problem | {"theta_target": torch.stack(goals)}
    moved = _last(loss, problem, transform) - start
    noise = torch.randn(len(start), generator=torch.Generator().manual_seed(7), dtype=start.dtype)
    return problem | {"theta_target": start + way * moved + moved.norm() * noise / noise.norm()}


def _parts(result) -> dict[str, torch.Tensor]:
    names = ("loss", "images", "targets", "step_size")
    return {name: getattr(result, name) for name in names if getattr(result, name) is not None}


def _gaps(ours: dict, theirs: dict) -> dict[str, float]:
    assert ours.keys() == theirs.keys()
    assert all(ours[name].shape == theirs[name].shape for name in ours)
    return {name: float((ours[name].double() - theirs[name]).norm() / theirs[name].norm()) for name in ours}


def _mean(results) -> dict[str, torch.Tensor]:
    parts = [_parts(result) for result in results]
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


def _tesla(loss, problem: dict, transform) -> dict[str, torch.Tensor]:
    """TESLA's two terms, weights of every step held constant: -2 beta (theta_0 - theta*) . dg_i + 2 beta^2 G . dg_i."""
    start, beta = problem["theta_start"], problem["step_size"]
    away = start - problem["theta_target"]
    images = problem["images"].clone().requires_grad_()
    soft = problem["targets"].is_floating_point()
    targets = problem["targets"].clone().requires_grad_(soft)
    inputs = (images, targets) if soft else (images,)
    theta, gradients = start, []
    for step, batch in enumerate(problem["batches"]):
        theta = theta.detach().requires_grad_()
        x = images[batch] if transform is None else transform(step, images[batch])
        gradients.append(torch.autograd.grad(loss(theta, x, targets[batch]), theta, create_graph=True)[0])
        theta = theta - beta * gradients[-1]
    total = sum(gradients).detach()
    covered = away.square().sum()
    slopes = [torch.zeros_like(leaf) for leaf in inputs]
    for gradient in gradients:
        linear = torch.autograd.grad(away @ gradient, inputs, retain_graph=True)
        square = torch.autograd.grad(total @ gradient, inputs)
        for slope, first, second in zip(slopes, linear, square, strict=True):
            slope += (-2 * beta * first + 2 * beta**2 * second) / covered
    loss_value = (away.square().sum() - 2 * beta * away @ total + beta**2 * total @ total) / covered
    step_size = (-2 * away @ total + 2 * beta * total @ total) / covered
    return {"loss": loss_value, **dict(zip(("images", "targets"), slopes, strict=False)), "step_size": step_size}


@pytest.mark.parametrize("strategy", ["", ONE_OF, ALL])
@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_the_adjoint_equals_one_graph_over_all_steps(network, steps, labels, strategy):
    problem = _problem(network, steps, labels)
    transform = _replayed(strategy, network, problem["batches"])
    exact = _parts(hypergradient(network.loss, **problem, method="unroll", transform=transform))
    assert ("targets" in exact) == (labels == "soft")
    for order in ORDERS:
        result = hypergradient(Derivatives(network.loss, order=order), **problem, transform=transform)
        gaps = _gaps(_parts(result), exact)
        assert max(gaps.values()) < 1e-10, f"{order}: {gaps}"


@pytest.mark.parametrize("steps", [1, 5])
def test_the_adjoint_of_a_direction_equals_one_graph_over_all_steps(network, steps):
    problem = _problem(network, steps)
    transform = _replayed(ALL, network, problem["batches"])
    problem, options = _towards(network.loss, problem, transform), {"transform": transform, "distance": "direction"}
    exact = _parts(hypergradient(network.loss, **problem, method="unroll", **options))
    gaps = _gaps(_parts(hypergradient(network.loss, **problem, **options)), exact)
    if steps == 1:  # one step goes the same way at every step size, and there is no later one that it changes
        gaps |= _gaps(_parts(hypergradient(network.loss, **problem, method="frozen", **options)), exact)
        gaps.pop("step_size")
        assert float(exact["step_size"].abs()) < 1e-10
    assert max(gaps.values()) < 1e-8


def test_learned_label_logits(network):
    problem = _problem(network, 5)
    loss = network.loss_of_label_logits
    exact = hypergradient(loss, **problem, method="unroll")
    assert max(_gaps(_parts(hypergradient(loss, **problem)), _parts(exact)).values()) < 1e-10
    of_probabilities = hypergradient(network.loss, **problem, method="unroll")
    assert max(_gaps(_parts(exact), _parts(of_probabilities)).values()) > 1e-2


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_students_side_by_side_give_the_mean(network, labels, distance):
    problem = _problem(network, 5, labels, students=3)
    transform = _replayed(ALL, network, problem["batches"])
    problem, options = _towards(network.loss, problem, transform), {"transform": transform, "distance": distance}
    exact = _mean(hypergradient(network.loss, **one, method="unroll", **options) for one in _each(problem))
    results = {"unroll": hypergradient(network.loss, **problem, method="unroll", **options)}
    for order in ORDERS:
        results[order] = hypergradient(Derivatives(network.loss, order=order), **problem, **options)
    for name, result in results.items():
        gaps = _gaps(_parts(result), exact)
        assert max(gaps.values()) < 1e-10, f"{name}: {gaps}"


@pytest.mark.parametrize("students", [0, 2])
def test_offloading_changes_nothing(network, students):
    problem = _problem(network, 5, students=students)
    exact, result = (_parts(hypergradient(network.loss, **problem, offload=offload)) for offload in (False, True))
    assert all(torch.equal(result[name], exact[name]) for name in exact)


@pytest.mark.parametrize("strategy", ["", ONE_OF, ALL])
@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("steps", [1, 5])
def test_frozen_is_the_published_formula(network, steps, labels, strategy):
    problem = _problem(network, steps, labels)
    transform = _replayed(strategy, network, problem["batches"])
    published = _tesla(network.loss, problem, transform)
    exact = _parts(hypergradient(network.loss, **problem, method="unroll", transform=transform))
    for order in ORDERS:
        for frozen in (True, False):
            derivatives = Derivatives(network.loss, order=order, frozen=frozen)
            result = _parts(hypergradient(derivatives, **problem, method="frozen", transform=transform))
            gaps = _gaps(result, published)
            assert max(gaps.values()) < 1e-10, f"{order}, frozen={frozen}: {gaps}"
    gaps = _gaps(result, exact)
    assert gaps.pop("loss") < 1e-10
    assert max(gaps.values()) < 1e-10 if steps == 1 else min(gaps.values()) > 1e-2


def test_frozen_moves_images_twice_as_far_as_the_published_code(network):
    """The published code differentiates beta (theta* - theta_0) . g_i + beta^2 G . g_i, half of what belongs to the images; its
    gradient in the step size is whole."""
    problem = _problem(network, 5)
    theta, beta = problem["theta_start"], problem["step_size"]
    wanted = problem["theta_target"] - theta
    images, gradients = problem["images"].clone().requires_grad_(), []
    for batch in problem["batches"]:
        theta = theta.detach().requires_grad_()
        loss = network.loss(theta, images[batch], problem["targets"][batch])
        gradients.append(torch.autograd.grad(loss, theta, create_graph=True)[0])
        theta = theta - beta * gradients[-1]
    total = sum(gradients).detach()
    terms = [(beta * wanted + beta**2 * total) @ gradient / wanted.square().sum() for gradient in gradients]
    published = torch.autograd.grad(sum(terms), images)[0]
    result = hypergradient(network.loss, **problem, method="frozen")
    torch.testing.assert_close(result.images, 2 * published, rtol=1e-10, atol=1e-14)
    step = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    loss = (-step * total - wanted).square().sum() / wanted.square().sum()
    torch.testing.assert_close(result.step_size, torch.autograd.grad(loss, step)[0], rtol=1e-10, atol=1e-14)


def test_frozen_students_side_by_side_give_the_mean(network):
    problem = _problem(network, 5, students=2)
    transform = _replayed(ALL, network, problem["batches"])
    published = _mean(hypergradient(network.loss, **one, method="frozen", transform=transform) for one in _each(problem))
    result = hypergradient(network.loss, **problem, method="frozen", transform=transform)
    assert max(_gaps(_parts(result), published).values()) < 1e-10


# --- a smooth network, for finite differences and for what depends on no architecture ---------------------------------------


def _mlp(theta: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first, bias, second = theta.split((72, 6, 18))
    hidden = torch.tanh(x.flatten(1) @ first.view(12, 6) + bias)
    return F.cross_entropy(hidden @ second.view(6, 3), y)


def _smooth(steps: int = 4, labels: str = "soft") -> dict:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    start = normal(96)
    return {
        "theta_start": start,
        "theta_target": start + 0.3 * normal(96),
        "images": normal(6, 3, 2, 2),
        "targets": normal(6, 3).softmax(1) if labels == "soft" else torch.tensor([0, 1, 2, 0, 1, 2]),
        "step_size": 0.4,
        "batches": [torch.randint(5, (4,), generator=generator) for _ in range(steps)],
    }


def _wave(step: int, images: torch.Tensor) -> torch.Tensor:
    return torch.sin((1 + 0.3 * step) * images)


def _distance(theta_start, theta_target, images, targets, step_size, batches, kind: str = "endpoint") -> float:
    """The loss, from plain gradient descent."""
    walk = {"theta_start": theta_start, "images": images, "targets": targets, "step_size": step_size, "batches": batches}
    theta = _last(_mlp, walk, _wave)
    if kind == "direction":
        return 1 - float(F.cosine_similarity(theta - theta_start, theta_target - theta_start, dim=0).clamp(min=0)) ** 2
    return float((theta - theta_target).square().sum() / (theta_start - theta_target).square().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_direction_knows_no_length(labels, method):
    problem = _towards(_mlp, _smooth(labels=labels), _wave)
    result = _parts(hypergradient(_mlp, **problem, method=method, transform=_wave, distance="direction"))
    far = problem | {"theta_target": problem["theta_start"] + 5 * (problem["theta_target"] - problem["theta_start"])}
    farther = _parts(hypergradient(_mlp, **far, method=method, transform=_wave, distance="direction"))
    assert result.keys() == farther.keys()
    assert all(torch.allclose(farther[name], result[name], rtol=1e-9, atol=1e-12) for name in result)
    endpoint, farther = (_parts(hypergradient(_mlp, **one, method=method, transform=_wave)) for one in (problem, far))
    assert not torch.allclose(farther["images"], endpoint["images"], rtol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_a_student_that_goes_the_opposite_way_or_stands_still_has_no_direction(method):
    opposite = _towards(_mlp, _smooth(), _wave, way=-3.0)
    result = hypergradient(_mlp, **opposite, method=method, transform=_wave, distance="direction")
    assert float(result.loss) == pytest.approx(1.0)
    assert not result.images.any()

    def flat(theta, x, y):
        return 0 * _mlp(theta, x, y)

    result = hypergradient(flat, **_smooth(), method=method, distance="direction")
    assert float(result.loss) == 1.0
    assert not result.images.any()
    assert not result.step_size.any()


@pytest.mark.parametrize("method", ["unroll", "adjoint"])
@pytest.mark.parametrize("name", ["images", "targets", "step_size"])
@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_is_the_slope_of_the_loss(distance, steps, name, method):
    problem = _towards(_mlp, _smooth(steps), _wave)
    result = hypergradient(_mlp, **problem, method=method, transform=_wave, distance=distance)
    assert float(result.loss) == pytest.approx(_distance(**problem, kind=distance), rel=1e-12)
    assert 0.01 < float(result.loss) < 0.999
    gradient, centre = getattr(result, name), torch.as_tensor(problem[name], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        direction = torch.randn(centre.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (_distance(**problem | {name: centre + w * direction}, kind=distance) for w in (1e-5, -1e-5))
        assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / 2e-5, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_labels_have_no_gradient(method):
    assert hypergradient(_mlp, **_smooth(labels="hard"), method=method).targets is None
    assert hypergradient(_mlp, **_smooth(labels="soft"), method=method).targets.shape == (6, 3)


@pytest.mark.parametrize("method", METHODS)
def test_images_that_were_never_drawn_have_gradient_zero(network, method):
    problem = _problem(network, 2)
    result = hypergradient(network.loss, **problem, method=method, transform=_replayed(ALL, network, problem["batches"]))
    drawn = torch.cat(problem["batches"]).unique()
    left_out = [index for index in range(DRAWN + UNDRAWN) if index not in drawn]
    assert len(left_out) >= UNDRAWN
    for gradient in (result.images, result.targets):
        sizes = gradient.flatten(1).abs().sum(1)
        assert (sizes[left_out] == 0).all()
        assert (sizes[drawn] > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_transform_is_told_the_step(method):
    problem = _smooth()
    calls = []

    def transform(step: int, images: torch.Tensor) -> torch.Tensor:
        calls.append(step)
        assert torch.equal(images, problem["images"][problem["batches"][step]])
        return images * (1 + step)

    result = hypergradient(_mlp, **problem, method=method, transform=transform)
    assert all(1 <= calls.count(step) <= 2 for step in range(4))
    assert set(calls) == set(range(4))
    scaled = [problem["images"][batch] * (1 + step) for step, batch in enumerate(problem["batches"])]
    unrolled = problem | {
        "images": torch.cat(scaled),
        "targets": torch.cat([problem["targets"][batch] for batch in problem["batches"]]),
        "batches": list(torch.arange(16).split(4)),
    }
    flat = hypergradient(_mlp, **unrolled, method=method)
    expected = torch.zeros_like(problem["images"])
    for step, (batch, part) in enumerate(zip(problem["batches"], flat.images.split(4), strict=True)):
        expected.index_add_(0, batch, part * (1 + step))
    torch.testing.assert_close(result.images, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_transform_that_hides_the_images_gives_no_gradient(method):
    result = hypergradient(_mlp, **_smooth(), method=method, transform=lambda step, images: torch.ones_like(images))
    assert (result.images == 0).all()
    assert result.targets.abs().sum() > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("students", [0, 2])
@pytest.mark.parametrize("distance", DISTANCES)
def test_single_precision_stays_single(network, distance, method, students):
    problem = _problem(network, 5, students=students)
    transform = _replayed(ALL, network, problem["batches"])
    if distance == "direction":
        problem = _towards(network.loss, problem, transform)
    single = {k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in problem.items()}
    options = {"method": method, "transform": transform, "distance": distance}
    exact, result = (_parts(hypergradient(network.loss, **values, **options)) for values in (problem, single))
    assert all(part.dtype == torch.float32 for part in result.values())
    assert all(part.dtype == torch.float64 for part in exact.values())
    gaps = _gaps(result, exact)
    if distance == "direction":
        gaps.pop("step_size")  # near 0
    assert max(gaps.values()) < 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_batches_may_differ_in_size(method):
    problem = _smooth() | {"batches": [torch.tensor([0]), torch.arange(6), torch.tensor([3, 3, 1])]}
    result = hypergradient(_mlp, **problem, method=method)
    assert result.images.flatten(1).abs().sum(1).min() > 0
    if method == "adjoint":
        assert max(_gaps(_parts(result), _parts(hypergradient(_mlp, **problem, method="unroll"))).values()) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone_and_results_are_detached(method):
    problem = _smooth()
    expected = _parts(hypergradient(_mlp, **problem, method=method, transform=_wave))
    live = problem | {
        name: torch.as_tensor(problem[name], dtype=torch.float64).clone().requires_grad_()
        for name in ("theta_start", "theta_target", "images", "targets", "step_size")
    }
    for recording in (True, False):
        with torch.set_grad_enabled(recording):
            result = _parts(hypergradient(_mlp, **live, method=method, transform=_wave))
        assert all(torch.equal(result[name], expected[name]) for name in expected)
        assert not any(part.requires_grad for part in result.values())
    for name in ("theta_start", "theta_target", "images", "targets"):
        assert live[name].grad is None
        assert torch.equal(live[name], problem[name])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("frozen", [False, True])
def test_pull_gives_the_scalar_and_its_derivatives(order, labels, frozen):
    problem = _smooth(labels=labels)
    x, y = problem["images"], problem["targets"]
    theta = torch.stack((problem["theta_start"], problem["theta_target"]))
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    derivatives = Derivatives(_mlp, order=order, frozen=frozen)
    soft = labels == "soft"
    own = []
    for weights, along in zip(theta, direction, strict=True):
        inputs = [weights.clone().requires_grad_(), x.clone().requires_grad_(), y.clone().requires_grad_(soft)]
        gradient = torch.autograd.grad(_mlp(*inputs), inputs[0], create_graph=True)[0]
        torch.testing.assert_close(derivatives.gradient(weights, x, y), gradient.detach())
        own.append((along @ gradient, *torch.autograd.grad(along @ gradient, inputs if soft else inputs[:2])))
        value, by_theta, by_x, by_y = derivatives.pull(weights, x, y, along)
        torch.testing.assert_close(value, own[-1][0].detach())
        torch.testing.assert_close(by_x, own[-1][2])
        assert (by_theta is None) == frozen
        assert frozen or torch.allclose(by_theta, own[-1][1])
        assert (by_y is not None) == soft
        assert not soft or torch.allclose(by_y, own[-1][3])
    values, by_thetas, by_x, by_y = derivatives.pull(theta, x, y, direction)
    torch.testing.assert_close(values, torch.stack([part[0].detach() for part in own]))
    torch.testing.assert_close(by_x, own[0][2] + own[1][2])
    assert (by_thetas is None) == frozen
    assert frozen or torch.allclose(by_thetas, torch.stack([part[1] for part in own]))
    assert not soft or torch.allclose(by_y, own[0][3] + own[1][3])


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="needs a C++ compiler")
def test_compiled_derivatives_equal_eager_ones(spec):
    network = FlatNetwork("convnet:width=4,depth=1", spec(1, 8, 4))
    problem = _problem(network, 3, "soft")
    problem = {k: v.float() if isinstance(v, torch.Tensor) else v for k, v in problem.items()}
    transform = _replayed(ALL, network, problem["batches"])
    eager, compiled = (
        hypergradient(Derivatives(network.loss, compile=compile), **problem, transform=transform) for compile in (False, True)
    )
    assert max(_gaps(_parts(compiled), {k: v.double() for k, v in _parts(eager).items()}).values()) < 1e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "adjont"}, r"unknown method 'adjont'\. Did you mean 'adjoint'\?"),
        ({"method": "xyz"}, r"unknown method 'xyz'\. Known: adjoint, frozen, unroll\."),
        ({"distance": "directions"}, r"unknown distance 'directions'\. Did you mean 'direction'\?"),
        ({"theta_target": torch.zeros(95)}, r"\(96,\) and \(95,\): expected \(P,\) or \(E, P\)"),
        ({"theta_target": torch.zeros(2, 96)}, r"\(96,\) and \(2, 96\)"),
        ({"theta_start": torch.zeros(1, 1, 96), "theta_target": torch.zeros(1, 1, 96)}, r"\(1, 1, 96\) and \(1, 1, 96\)"),
        ({"theta_start": torch.zeros(()), "theta_target": torch.zeros(())}, r"shapes \(\) and \(\)"),
        ({"batches": []}, "no batches: expected at least one student step"),
        ({"targets": torch.zeros(5, dtype=torch.int64)}, "6 images and 5 targets"),
        ({"step_size": 0}, r"step_size is 0\.0: expected a positive number"),
        ({"step_size": torch.tensor(-0.5)}, r"step_size is -0\.5"),
        ({"step_size": float("nan")}, "step_size is nan"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_wrong_arguments_are_refused(method, changes, message):
    with pytest.raises(InputError, match=message):
        hypergradient(_mlp, **{"method": method, **_smooth(), **changes})


def test_wrong_derivatives_are_refused():
    with pytest.raises(InputError, match=r"unknown order 'reverse-over-reversed'\. Did you mean 'reverse-over-reverse'\?"):
        Derivatives(_mlp, order="reverse-over-reversed")
    with pytest.raises(InputError, match=r"made with frozen=True: make them without it for method 'adjoint'"):
        hypergradient(Derivatives(_mlp, frozen=True), **_smooth())
