"""A stream in Lightning: a GeneratedLoader, or with worker processes a DataLoader over a GeneratedDataset.

python docs/examples/with_lightning.py runs/digits [WORKERS]
"""

import sys

import lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import dim
from dim.nets.student import build_student


class Classifier(lightning.LightningModule):
    def __init__(self, spec: dim.DataSpec) -> None:
        super().__init__()
        self.net = build_student("convnet:width=32", spec, seed=0)  # any model that takes [-1, 1] images

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class Stream(lightning.LightningDataModule):
    def __init__(self, generator: dim.Generator, workers: int = 0) -> None:
        super().__init__()
        self.workers = workers
        self.images = (
            dim.GeneratedDataset(generator, 1000) if workers else dim.GeneratedLoader(generator, batch_size=50, steps=20)
        )

    def train_dataloader(self) -> dim.GeneratedLoader | DataLoader:
        self.images.set_epoch(self.trainer.current_epoch)  # new images in every epoch, also after a restart
        return DataLoader(self.images, batch_size=50, num_workers=self.workers) if self.workers else self.images


def main(run: str, workers: int = 0) -> lightning.LightningModule:
    generator = dim.load_generator(run)
    model = Classifier(generator.spec)
    trainer = lightning.Trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1)  # it asks for the loader in every epoch
    trainer.fit(model, Stream(generator, workers))
    return model


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))
