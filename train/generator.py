"""Train a generator: `python train/generator.py --recipe digits-dim --out runs/digits`, or with `accelerate launch`.

The same as `dim train`; see `--help`.
"""

import sys

from dim.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
