"""The arithmetic of students: compiled and in bfloat16 they learn what they learn without."""

import dataclasses

import pytest
import torch
from torch import nn

import dim.compiling as compiling
import dim.nets.student_step as module
from dim.compiling import native_bfloat16
from dim.config import FeatureConfig, ProtocolConfig
from dim.nets.student import build_student
from dim.nets.student_step import StudentStep, settled, training_flops


def batch(spec, soft=False, count=6):
    source = torch.Generator().manual_seed(0)
    images = torch.rand(count, *spec.image_shape, generator=source) * 2 - 1
    targets = torch.arange(count) % spec.num_classes
    return images, torch.rand(count, spec.num_classes, generator=source).softmax(1) if soft else targets


def gradients(spec, student, precision, compile, soft):
    net = build_student(student, spec, seed=3).train()
    loss, logits = StudentStep(net, precision, compile).loss(*batch(spec, soft))
    assert not logits.requires_grad
    loss.backward()
    return loss.detach(), logits, torch.cat([value.grad.flatten() for value in net.parameters()])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("student", ["convnet:width=8", "resnet10:width=8"])
def test_a_compiled_step_gives_the_same_to_rounding(spec, student, soft):
    plain, compiled = (gradients(spec(size=9), student, "fp32", compile, soft) for compile in ("off", "on"))
    for given, wanted in zip(compiled, plain, strict=True):
        torch.testing.assert_close(given, wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("compile", ["off", "on"])
def test_bfloat16_comes_close_and_is_used(spec, compile):
    plain, half = (gradients(spec(size=16), "convnet:width=8", precision, compile, False) for precision in ("fp32", "bf16"))
    assert not torch.equal(plain[2], half[2])
    assert half[0].dtype == half[1].dtype == half[2].dtype == torch.float32
    assert torch.cosine_similarity(plain[2], half[2], dim=0) > 0.98


def test_students_of_one_kind_share_what_was_compiled(spec, monkeypatch):
    made = []
    monkeypatch.setattr(module, "_made", {})
    monkeypatch.setattr(module, "compiled", lambda function: made.append(function) or function)
    for seed, student, count in (
        (0, "convnet:width=8", 6),
        (1, "convnet:width=8", 6),
        (0, "convnet:width=8", 5),
        (0, "convnet:width=4", 6),
    ):
        StudentStep(build_student(student, spec(), seed=seed), compile="on").loss(*batch(spec(), count=count))
    assert len(made) == 3


def test_a_last_batch_that_is_smaller_is_filled_up(spec, monkeypatch):
    shapes = []
    monkeypatch.setattr(module, "compiled", lambda function: lambda *inputs: shapes.append(len(inputs[2])) or function(*inputs))
    monkeypatch.setattr(module, "_made", {})
    net = build_student("convnet:width=8", spec(), seed=0).eval()
    step, (images, _) = StudentStep(net, compile="on"), batch(spec())
    given = torch.cat([step.logits(images[:4]), step.logits(images[4:])])
    assert shapes == [4, 4]
    torch.testing.assert_close(given, net(images).detach())


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2, 1), nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2, ceil_mode=True)])
def test_other_poolings_stay(pool):
    body = nn.Sequential(nn.Sequential(pool))
    StudentStep(body, compile="on")
    assert body[0][0] is pool


def test_work_settles_what_is_open(spec, monkeypatch):
    monkeypatch.setattr(compiling, "compiler_found", lambda device: True)
    monkeypatch.setattr(module, "native_bfloat16", lambda device: True)
    flops = training_flops("convnet:width=8", spec())
    few, many = int(1e12 / flops), int(1e13 / flops)

    def kinds(images, **changes):
        config = settled(ProtocolConfig(**changes), "convnet:width=8", spec(), "cpu", steps=images, batch=1)
        return config.precision, config.compile

    assert kinds(few) == ("fp32", "off")
    assert kinds(many) == ("bf16", "on")
    assert kinds(many, compile="off") == ("fp32", "off")
    assert kinds(few, compile="on") == ("bf16", "on")
    assert kinds(many, precision="fp32") == ("fp32", "on")
    assert kinds(few, precision="bf16") == ("bf16", "off")
    monkeypatch.setattr(module, "native_bfloat16", lambda device: False)
    assert kinds(many) == ("fp32", "on")
    monkeypatch.setattr(compiling, "compiler_found", lambda device: False)
    assert kinds(many) == ("fp32", "off")
    once = settled(FeatureConfig(), "convnet:width=8", spec(), "cpu", steps=many, batch=1)
    assert settled(once, "convnet:width=8", spec(), "cpu", steps=few, batch=1) == once


def test_operations_are_counted(spec):
    images = spec(3, 8, 4)
    layer = 8 * 8 * 8 * 3 * 9 + 8 * 4 * 4 * 8 * 9 + 8 * 2 * 2 * 8 * 9 + 8 * 4  # three convolutions and the linear layer
    assert training_flops("convnet:width=8", images) == 3 * 2 * layer


@pytest.mark.parametrize("norm", ["batch", "batchstats", "layer", "group"])
def test_operations_are_counted_whatever_the_norm_and_down_to_one_pixel(spec, norm):
    assert training_flops(f"resnet10:width=8,norm={norm}", spec()) == training_flops("resnet10:width=8", spec()) > 0


def test_no_other_device_claims_bfloat16():
    assert native_bfloat16("meta") is False


def test_a_row_says_its_arithmetic(digits):
    from dim.score.evaluate import Evaluator

    protocol = ProtocolConfig(students=("convnet:width=4",), epochs=1, batch_size=16)
    for precision in ("fp32", "bf16"):
        (score,) = Evaluator(digits, dataclasses.replace(protocol, precision=precision), seeds=1).random_real(1)
        assert (score.protocol["precision"], score.protocol["compile"]) == (precision, "off")
