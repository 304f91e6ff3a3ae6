"""Distill pixels: `python train/distill.py --recipe digits-mtt-ipc1 --experts experts/digits --out sets/digits-mtt-1`, or with
`accelerate launch`.

The same as `dim distill`; see `--help`.
"""

import sys

from dim.commands.cli import run

if __name__ == "__main__":
    run(["distill", *sys.argv[1:]])
