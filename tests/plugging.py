"""The examples of docs/plug-in.md in tests, without the libraries that only some of them need."""

import ast
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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
