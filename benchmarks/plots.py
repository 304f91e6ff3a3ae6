"""Draw the two pictures of the README from what lies in results/; nothing is trained or measured.

    python benchmarks/plots.py [--out docs/pictures]

`accuracy-against-ipc.png`: accuracy of students against images per class, from results/policies-fashion.json. Labels of the two
kinds have a panel each, since IPC 50 was measured with soft labels only. `samples-fashion.png`: real images, the first ones that
the generator makes of every class, and refined ones, cut from pictures that the benchmarks left in results/.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
import tyro
from matplotlib import pyplot as plt
from PIL import Image

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# Names of rows in the file, with what the picture calls them, their colour and their marker.
METHODS = {
    "matched+refined by trajectory": ("generator, latents refined by trajectory", "#c44e00", "o"),
    "plain": ("generator, drawn without a choice", "#1f6fb4", "s"),
    "herding real": ("real images chosen by herding", "#555555", "^"),
    "random real": ("real images chosen at random", "#999999", "D"),
}
PANELS = {"hard": "Hard labels", "soft": "Soft labels of three experts"}
SIZES = (1, 10, 50)

SAMPLES = {
    "real training images": "fashion-dim-small-real.png",
    "drawn from the generator": "generators-fashion-long-gan.png",
    "the same generator, latents refined": "policies-fashion-matched-refined-by-trajectory.png",
}
# A picture in results/ is a grid of 10x10 images of 28 pixels, enlarged twice, with two pixels between them; a row is a class.
_CLASSES, _SIDE, _GAP, _SHOWN = 10, 56, 2, 4


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Draw the pictures of the README."""

    out: str = str(ROOT / "docs" / "pictures")
    """Folder for them."""


def fixed_scores(path: Path) -> dict[tuple[str, str], dict[int, tuple[float, float]]]:
    """Mean and standard deviation of the fixed rows of a file: by name and kind of labels, then by images per class."""
    found: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for row in json.loads(path.read_text())["rows"]:
        for score in row["scores"]:
            if score["track"] == "fixed":
                key = score["name"], score["labels"].partition(" ")[0]
                found.setdefault(key, {})[score["ipc"]] = score["mean"], score["std"]
    return found


def accuracy_against_ipc(path: Path) -> plt.Figure:
    """One panel for hard labels and one for soft labels; error bars are standard deviations."""
    scores = fixed_scores(path)
    figure, panels = plt.subplots(1, 2, figsize=(9.2, 4.1), sharey=True, layout="constrained")
    for panel, (kind, title) in zip(panels, PANELS.items(), strict=True):
        for number, (name, (label, colour, marker)) in enumerate(METHODS.items()):
            points = scores[name, kind]
            sizes = [size for size in SIZES if size in points]
            means, deviations = zip(*(points[size] for size in sizes), strict=True)
            # A little apart, so that error bars do not hide one another.
            places = [size * 1.035 ** (number - 1.5) for size in sizes]
            style = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.8, "capsize": 3, "elinewidth": 1.2}
            panel.errorbar(places, means, deviations, label=label, **style)
        panel.set_xscale("log")
        panel.set_xticks(SIZES, [str(size) for size in SIZES])
        panel.minorticks_off()
        panel.set_xlim(0.82, 61)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("images per class")
        panel.grid(axis="y", color="#dddddd", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy in %")
    for panel, missing in zip(panels, ("50 per class:\nnot measured", "herding at 50:\nnot measured"), strict=True):
        panel.text(58, 63, missing, ha="right", va="center", fontsize=9, color="#555555")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    title = "Fashion-MNIST, fixed sets, ConvNet-3 of width 32: mean ± standard deviation of 3 students"
    figure.suptitle(title, fontsize=11)
    return figure


def tiles(path: Path) -> np.ndarray:
    """The first images of every class in a picture of results/; a column is a class: uint8 (height, width)."""
    picture = np.asarray(Image.open(path).convert("L"))
    pitch = _SIDE + _GAP
    result = np.full((_SHOWN * pitch - _GAP, _CLASSES * pitch - _GAP), 255, dtype=np.uint8)
    for label in range(_CLASSES):
        for number in range(_SHOWN):
            image = picture[_GAP + label * pitch :, _GAP + number * pitch :][:_SIDE, :_SIDE]
            result[number * pitch :, label * pitch :][:_SIDE, :_SIDE] = image
    return result


def samples(folder: Path) -> plt.Figure:
    """Real, generated and refined images side by side, pixel by pixel as they are in the pictures of the results."""
    parts = {title: tiles(folder / name) for title, name in SAMPLES.items()}
    high, wide = next(iter(parts.values())).shape
    dpi, top, between = 100, 48, 36
    width, height = len(parts) * wide + (len(parts) - 1) * between, high + top
    figure = plt.figure(figsize=(width / dpi, height / dpi), dpi=dpi)
    for number, (title, picture) in enumerate(parts.items()):
        left = number * (wide + between)
        figure.figimage(picture, xo=left, yo=0, cmap="gray", vmin=0, vmax=255)
        figure.text((left + wide / 2) / width, 1 - top / 2 / height, title, ha="center", va="center", fontsize=20)
    return figure


def main(arguments: Arguments) -> None:
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    # No metadata: the same figures give the same file.
    accuracy_against_ipc(RESULTS / "policies-fashion.json").savefig(
        out / "accuracy-against-ipc.png", dpi=150, metadata={"Software": None}
    )
    figure = samples(RESULTS)
    figure.savefig(out / "samples-fashion.png", dpi=figure.dpi, metadata={"Software": None})


if __name__ == "__main__":
    main(tyro.cli(Arguments))
