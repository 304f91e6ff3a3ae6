"""An exported generator without PyTorch and without this package: NumPy and onnxruntime.

dim export runs/digits --to onnx --out digits.onnx
python docs/examples/exported.py digits.onnx images.npz [IPC] [SEED]
"""

import base64
import hashlib
import json
import sys
from typing import Any

import numpy as np
import onnxruntime

WORD = 0xFFFFFFFF


def normal(seed: int, rows: np.ndarray, width: int) -> np.ndarray:
    """Standard normal values that depend on the seed and on the row only, int (N, 2) -> float32 (N, width): Philox4x32-10
    (Salmon et al. 2011) and Box-Muller, as `dim sample` draws them."""
    name = hashlib.blake2b(f"{seed}:latent".encode(), digest_size=8).digest()
    key = int.from_bytes(name, "little") >> 1
    k0, k1 = key & WORD, key >> 32
    shape = (len(rows), -(-width // 4))
    c0, c1, c2 = (np.broadcast_to(part, shape).astype(np.uint64) for part in (np.arange(shape[1]), rows[:, :1], rows[:, 1:]))
    c3 = np.zeros(shape, np.uint64)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & WORD, (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    uniform = (np.stack((c0, c1, c2, c3), axis=-1).astype(np.float64) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(uniform[..., 0::2])), 2 * np.pi * uniform[..., 1::2]
    values = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
    return values.reshape(len(rows), -1)[:, :width].astype(np.float32)


def draw(about: dict[str, Any], labels: np.ndarray, indices: np.ndarray, seed: int) -> np.ndarray:
    """Latents of images number `indices` of classes `labels`, float32 (N, Z), as `dim sample --seed` takes them."""
    rows, latents = np.stack((labels, indices), axis=1), about["latents"]
    if "anchors" not in latents:
        return normal(seed, rows, latents["width"])
    values = np.frombuffer(base64.b64decode(latents["anchors"]["values"]), "<f4").reshape(latents["anchors"]["shape"])
    nearest, count = values[labels, indices % values.shape[1]], values.shape[1]
    own = np.pad(normal(seed, rows, latents["own_width"]), ((0, 0), (0, latents["width"] - latents["own_width"])))
    return nearest + np.where(indices < count, 0, np.float32(latents["spread"]))[:, None] * own


def main(file: str, out: str, ipc: int = 10, seed: int = 0) -> None:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    labels = np.repeat(np.arange(len(about["classes"])), ipc)  # int64
    indices = np.tile(np.arange(ipc), len(about["classes"]))
    latents = draw(about, labels, indices, seed)  # or any standard normal values
    images = np.concatenate(
        [session.run(None, {"latents": latents[i : i + 64], "labels": labels[i : i + 64]})[0] for i in range(0, len(labels), 64)]
    )
    np.savez(out, images=np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8), labels=labels)


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
