"""Train a generator: `python train/generator.py --recipe digits-dim --out runs/digits`, or with `accelerate launch`.

The same as `dim train`; see `--help`.
"""

import sys

from dim.commands.cli import run

if __name__ == "__main__":
    run(["train", *sys.argv[1:]])
