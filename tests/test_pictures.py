"""Grids of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from dim.pictures import grid, save_png


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_images_stand_where_they_belong(channels, mode):
    """Row r, column n holds rows[r, n], enlarged by whole pixels, with white between."""
    pixels = torch.randint(0, 255, (2, 3, channels, 8, 8), generator=torch.Generator().manual_seed(0))
    picture = grid(pixels / 127.5 - 1, gap=2)
    assert picture.mode == mode
    array = np.asarray(picture).reshape(picture.height, picture.width, channels)
    factor = 6  # 8 pixels become 48
    assert array.shape == (2 * 50 + 2, 3 * 50 + 2, channels)
    covered = np.zeros(array.shape[:2], dtype=bool)
    for r in range(2):
        for n in range(3):
            top, left = 2 + 50 * r, 2 + 50 * n
            covered[top : top + 48, left : left + 48] = True
            for y in range(0, 48, 5):
                for x in range(0, 48, 5):
                    assert array[top + y, left + x].tolist() == pixels[r, n, :, y // factor, x // factor].tolist()
    assert (array[~covered] == 255).all()


def test_large_images_keep_their_size():
    assert grid(torch.zeros(1, 2, 3, 64, 64), gap=0).size == (128, 64)


def test_png_round_trip(tmp_path):
    picture = grid(torch.linspace(-1, 1, 64).view(1, 1, 1, 8, 8))
    save_png(tmp_path / "new" / "grid.png", picture)
    with Image.open(tmp_path / "new" / "grid.png") as read:
        assert read.format == "PNG"
        assert np.array_equal(np.asarray(read), np.asarray(picture))


def test_a_failed_png_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "grid.png"
    save_png(path, Image.new("L", (3, 3)))
    before = path.read_bytes()
    picture = Image.new("L", (5, 5))

    def fail(handle, **_):
        handle.write_bytes(b"part")
        raise OSError("disk")

    monkeypatch.setattr(picture, "save", fail)
    with pytest.raises(OSError, match="disk"):
        save_png(path, picture)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]
