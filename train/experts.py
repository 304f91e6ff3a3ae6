"""Record experts: `python train/experts.py --recipe digits-mtt-ipc1 --out experts/digits`, or with `accelerate launch`.

The same as `dim experts`; see `--help`.
"""

import sys

from dim.commands.cli import run

if __name__ == "__main__":
    run(["experts", *sys.argv[1:]])
