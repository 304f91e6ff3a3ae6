"""Draw a set: `python sample/emit.py runs/digits --ipc 10 --out sets/digits-10`, or with `accelerate launch`.

The same as `dim sample`; several processes share the work and write the same set as one.
"""

import sys

from dim.commands.cli import run

if __name__ == "__main__":
    run(["sample", *sys.argv[1:]])
