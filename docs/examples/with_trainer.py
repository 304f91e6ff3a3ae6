"""A stored set in Hugging Face's Trainer, as class folders or as parquet.

dim sample runs/digits --ipc 50 --format parquet --out sets/digits-50
python docs/examples/with_trainer.py sets/digits-50 OUT [EPOCHS]
"""

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_dataset
from torchvision.transforms.functional import pil_to_tensor
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification


def read(folder: str) -> Dataset:
    table = Path(folder) / "data.parquet"
    if table.exists():
        return load_dataset("parquet", data_files=str(table), split="train")
    return load_dataset("imagefolder", data_dir=folder, split="train")


def batch(rows: dict[str, list]) -> dict[str, Any]:
    """Pictures -> what a model takes: (B, 3, H, W) in [-1, 1]."""
    pixels = torch.stack([pil_to_tensor(picture.convert("RGB")) for picture in rows["image"]])
    return {"pixel_values": pixels / 127.5 - 1, "labels": rows["label"]}


def main(folder: str, out: str, epochs: int = 20) -> Trainer:
    images = read(folder)
    names = images.features["label"].names  # in the order of the set's classes
    size = images[0]["image"].size[0]
    shape = {"image_size": size, "patch_size": size // 4, "hidden_size": 64, "intermediate_size": 128}
    config = ViTConfig(**shape, num_hidden_layers=2, num_attention_heads=4, id2label=dict(enumerate(names)))
    settings = {"num_train_epochs": epochs, "per_device_train_batch_size": 50, "learning_rate": 3e-3, "logging_strategy": "epoch"}
    arguments = TrainingArguments(out, remove_unused_columns=False, report_to="none", **settings)
    trainer = Trainer(ViTForImageClassification(config), arguments, train_dataset=images.with_transform(batch))
    trainer.train()
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:4]))
