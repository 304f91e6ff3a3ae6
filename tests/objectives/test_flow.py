"""Flow matching and mean velocities."""

import pytest
import torch
from torch import nn

from dim.config import FlowConfig, GeneratorConfig
from dim.errors import InputError
from dim.nets.generator import build_generator
from dim.objectives.flow import FlowMatching, mean_velocity_target


class Known(nn.Module):
    """u(x, r, t) = a x t + b r, whose total derivative along the flow is a (v t + x)."""

    null = 9

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.7))

    def average_velocity(self, x, r, t, y):
        r, t = r.view(-1, 1, 1, 1), t.view(-1, 1, 1, 1)
        return self.a * x * t + self.b * r


def test_target_of_the_mean_velocity_by_hand():
    x, velocity = torch.randn(2, 4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r, t = torch.tensor([0.0, 0.1, 0.5, 0.9]).double(), torch.tensor([1.0, 0.4, 0.5, 0.95]).double()
    target = mean_velocity_target(Known().double(), x, r, t, torch.zeros(4, dtype=torch.int64), velocity)
    wide = t.view(-1, 1, 1, 1)
    expected = velocity - (t - r).view(-1, 1, 1, 1) * float(torch.tensor(0.3)) * (velocity * wide + x)
    torch.testing.assert_close(target, expected)
    assert not target.requires_grad
    torch.testing.assert_close(target[2], velocity[2])  # r = t: the velocity itself


def test_target_of_the_network_by_finite_differences(spec):
    net = build_generator(GeneratorConfig(name="diffusion", width=4), spec(1, 8, 3), seed=0).double().eval()
    x, velocity = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    r, t, y = torch.tensor([0.1, 0.3]).double(), torch.tensor([0.8, 0.7]).double(), torch.tensor([0, 3])
    target = mean_velocity_target(net, x, r, t, y, velocity)
    with torch.no_grad():
        ahead, behind = (net.average_velocity(x + h * velocity, r, t + h, y) for h in (1e-5, -1e-5))
    expected = velocity - (t - r).view(-1, 1, 1, 1) * (ahead - behind) / 2e-5
    torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-8)


def test_phases_and_the_gradient_by_hand():
    """Before `few_steps_from` the velocity alone; after it a share of the batch learns mean velocities too."""
    real, labels = torch.rand(8, 1, 4, 4) * 2 - 1, torch.zeros(8, dtype=torch.int64)
    net = Known()
    flow = FlowMatching(FlowConfig(mean_share=0.25), few_steps_from=5, seed=0)
    assert flow.regress(net, real, labels, step=4).keys() == {"flow"}
    assert net.a.grad is not None
    assert flow.regress(net, real, labels, step=5).keys() == {"flow", "mean_flow"}
    only = FlowMatching(FlowConfig(mean_share=1.0), few_steps_from=0, seed=0)
    assert only.regress(net, real, labels, step=0).keys() == {"mean_flow"}


def test_gradients_are_added_and_draws_follow_seed_and_step():
    real, labels = torch.rand(8, 1, 4, 4) * 2 - 1, torch.zeros(8, dtype=torch.int64)
    gradients = []
    for seed, step, times in ((0, 1, 1), (0, 1, 2), (0, 2, 1), (1, 1, 1)):
        net = Known()
        for _ in range(times):
            FlowMatching(FlowConfig(), few_steps_from=0, seed=seed).regress(net, real, labels, step=step)
        gradients.append(float(net.a.grad))
    assert gradients[1] == pytest.approx(2 * gradients[0])
    assert len(set(gradients)) == 4


def test_labels_are_dropped_as_often_as_asked():
    seen = []

    class Recording(Known):
        def average_velocity(self, x, r, t, y):
            seen.append(y)
            return super().average_velocity(x, r, t, y)

    real, labels = torch.rand(500, 1, 4, 4), torch.ones(500, dtype=torch.int64)
    for dropout in (0.0, 0.3):
        seen.clear()
        FlowMatching(FlowConfig(label_dropout=dropout), few_steps_from=9, seed=0).regress(Recording(), real, labels, step=0)
        assert float((seen[0] == 9).float().mean()) == pytest.approx(dropout, abs=0.06)
        assert ((seen[0] == 9) | (seen[0] == 1)).all()


def test_two_images_are_learned_in_one_step_of_the_sampler(spec):
    """A flow whose classes are one image each: after training, one jump from any noise lands near the class's image."""
    data = spec(1, 8, 2)
    net = build_generator(GeneratorConfig(name="diffusion", width=8), data, seed=0)
    source = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 1, 8, 8, generator=source) * 2 - 1
    labels = torch.arange(32) % 2
    flow = FlowMatching(FlowConfig(label_dropout=0.0), few_steps_from=60, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(180):
        flow.regress(net, pair[labels], labels, step=step)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        images = net.eval()(torch.randn(32, 64, generator=source), labels)
    error = (images - pair[labels]).square().mean()
    assert error < 0.1 * (pair[1 - labels] - pair[labels]).square().mean(), float(error)


def test_bad_options_are_refused():
    for name in ("mean_from", "mean_share", "label_dropout"):
        with pytest.raises(InputError, match=rf"flow\.{name} is 1\.5: expected a number in \[0, 1\]"):
            FlowConfig(**{name: 1.5})
    with pytest.raises(InputError, match=r"flow\.time_std is 0"):
        FlowConfig(time_std=0.0)
