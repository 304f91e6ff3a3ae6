"""Compiling with `torch.compile`: where it is worth its time, and what happens where it fails."""

import importlib.util
import itertools
import logging
import os
import shutil
import subprocess
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from dim.config.settings import Compile

_REPAYS = 2000  # calls from which a compilation of half a minute is repaid
_FLOPS_PER_SECOND = 8e10  # of a core in eager mode, about


def compiler_found(device: torch.device | str) -> bool:
    """Whether a compiler for the device is at hand: a C++ compiler for a CPU, Triton for a GPU."""
    if torch.device(device).type == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++"))
    return importlib.util.find_spec("triton") is not None


def worth_compiling(choice: Compile, device: torch.device | str, calls: int) -> bool:
    """Whether to compile a function that will be called so many times: `auto` from 2,000 calls, where a compiler is found."""
    return choice == "on" or (choice == "auto" and calls >= _REPAYS and compiler_found(device))


def work_repays(choice: Compile, device: torch.device | str, flops: float, *, seconds: float) -> bool:
    """Whether to compile a function that does so many floating-point operations in all.

    Args:
        choice: `auto` is for CPUs, where compiling saves a part of the time of every operation; elsewhere it is off.
        flops: of all calls.
        seconds: what compiling takes, about.
    """
    worth = torch.device(device).type == "cpu" and flops >= 2 * seconds * _FLOPS_PER_SECOND and compiler_found(device)
    return choice == "on" or (choice == "auto" and worth)


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether the device multiplies bfloat16 faster than float32: CPUs with AVX-512 BF16 or AMX, GPUs from Ampere on."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def compiled(function: Callable) -> Callable:
    """`torch.compile` for static shapes. Where the compiler fails, one warning, and the function as it was from then on.

    PyTorch counts compilations by the code that was compiled, up to a limit, and closures of one factory share their code; here
    every function counts for itself.
    """
    own = _with_own_code(function) if isinstance(function, types.FunctionType) else function
    state = {"run": torch.compile(own, dynamic=False), "tried": False}

    def run(*inputs: Tensor):
        if state["tried"]:
            return state["run"](*inputs)
        state["tried"] = True
        talk = logging.getLogger("torch.utils.cpp_extension")
        level = talk.level
        try:
            with warnings.catch_warnings():  # the compiler's own, about libraries that it imports and CUDA that is absent
                warnings.simplefilter("ignore")
                talk.setLevel(logging.ERROR)
                return state["run"](*inputs)
        except (torch._dynamo.exc.TorchDynamoException, subprocess.CalledProcessError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(f"compiling failed, so this run is slower: {reason}", RuntimeWarning, stacklevel=2)
            state["run"] = function
            return function(*inputs)
        finally:
            talk.setLevel(level)

    return run


def compiled_whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors that takes gradients inside, and gradients of gradients, as one compiled graph without autograd.

    It is traced at the first call for given shapes, with the autocast that holds then. Compiled apart, forward and backward would
    have to store what one kernel computes on the way, and a backward that is differentiated again would not compile at all.

    Args:
        function: tensors, or lists and dictionaries of them -> the same; it asks for gradients by `torch.autograd.grad` of copies
            of its inputs that it makes require them.
    """
    made: dict[Any, Callable] = {}

    def run(*inputs: Any) -> Any:
        key = tuple((leaf.shape, leaf.dtype) for leaf in tree_leaves(inputs) if leaf is not None)
        if key not in made:
            made[key] = compiled(make_fx(lambda *given: function(*given))(*inputs))
        with torch.no_grad():
            return made[key](*inputs)

    return run


_numbers = itertools.count()


def _with_own_code(function: types.FunctionType) -> types.FunctionType:
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    copy = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
