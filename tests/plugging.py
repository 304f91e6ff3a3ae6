"""The examples of docs/plug-in.md in tests, without the libraries that only some of them need."""

import ast
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dim.config import DataConfig, GeneratorConfig, ProtocolConfig
from dim.data.real import RealData
from dim.nets.generator import build_generator
from dim.nets.generator_file import FILE_NAME, save_generator_file

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def example(name: str) -> dict[str, Any]:
    """What an example defines."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def run_as_program(name: str, *arguments: object) -> Any:
    """What `main` returns, called as the example calls it with the arguments of a command line."""
    file = EXAMPLES / f"{name}.py"
    (call,) = ast.parse(file.read_text()).body[-1].body
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(file), *map(str, arguments)])
        return eval(compile(ast.Expression(call.value), file, "eval"), example(name))


def mean_generator(digits: RealData, folder: Path) -> str:
    """The folder, with a small generator that has learned the mean of every class, so that one learns digits from its images."""
    settings = GeneratorConfig(name="gan", width=4, latent_dim=6)
    net = build_generator(settings, digits.spec, seed=0)
    images, labels = digits.train.batch(torch.arange(len(digits.train)))
    means = torch.stack([images[labels == label].mean(0) for label in range(10)])
    optimizer, source = torch.optim.Adam(net.parameters(), 0.02), torch.Generator().manual_seed(0)
    for _ in range(100):
        chosen = torch.randint(10, (100,), generator=source)
        loss = F.mse_loss(net(torch.randn(100, 6, generator=source), chosen), means[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_generator_file(folder / FILE_NAME, net, config=settings, data=DataConfig(), protocol=ProtocolConfig(), about={})
    return str(folder)


def parts(run: str) -> tuple[list[list[tuple[Tensor, Tensor]]], list[Tensor]]:
    """What a process of accelerate gets of either loader in two epochs, and the weights that it trains."""
    from accelerate import Accelerator

    os.environ["ACCELERATE_USE_CPU"] = "true"  # as `accelerate launch --cpu` has it
    kinds = []
    for workers in (None, 0):
        loader, epochs = example("with_accelerate")["stream"](run, Accelerator(), workers), []
        for number in range(2):
            loader.set_epoch(number)
            images, labels = zip(*loader, strict=True)
            assert len(images) == len(loader) == 20
            epochs.append((torch.cat(images), torch.cat(labels)))
        kinds.append(epochs)
    model = run_as_program("with_accelerate", run, 0)
    return kinds, [parameter.detach() for parameter in model.parameters()]
