"""What a result was made with: versions and hardware, for every artefact and score."""

import importlib.metadata
import platform
from typing import Any

import torch


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide a result."""
    names = ("dim-distill", "torch", "torchvision", "diffusers", "accelerate", "timm")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a source tree, or an optional library that is absent
    return found


def hardware(device: torch.device | str) -> dict[str, Any]:
    """Kind and name of the device, and the number of CPU threads in use."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": device.type, "name": name, "threads": torch.get_num_threads()}
