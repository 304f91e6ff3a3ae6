"""Do these sources compute the same, bit by bit, as others did? Digests of what small runs of every command leave.

    python benchmarks/digests.py --out before.json
    ... change the sources ...
    python benchmarks/digests.py --compare before.json

Trains three generators with every kind of pool and distance, records experts, distills by all four methods, samples with every
policy and in every format, and scores, all on scikit-learn's digits and through the command line, so that it can be run on any
two versions. Bits are those of one machine, one release of PyTorch and one number of threads; it takes some minutes on one core.
"""

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

STUDENTS = "--pool.students convnet:width=8 resnet10:width=4,norm=batchstats"
TRAIN = f"""train --recipe digits-dim --stage-one.epochs 0.5 --stage-two.epochs 0.3 --fit.trackers --fit.sample-steps 0
 --fit.log-steps 5 {STUDENTS}"""
GAN = f"""{TRAIN} --generator.name gan --generator.width 8 --discriminator.width 8 --adversarial.loss relativistic
 --adversarial.augment color_crop --adversarial.augment-target 0.5 --adversarial.gamma-end 0.01 --pool.images generated
 --matching.weight 20 --matching.outputs features"""
UNPOOLED = GAN.replace(STUDENTS, "").replace("--pool.images generated", "")
EXPERTS = "experts --recipe digits-mtt-ipc1 --experts.count 2 --experts.epochs 3 --experts.compile off"
LEARN = """--experts E/mtt --distill.iterations 4 --trajectory.steps 4 --trajectory.epochs 2 --trajectory.max-start 3
 --trajectory.compile off"""
SAMPLE = "sample R/gan --ipc 3 --policy.candidates 12"
REFINE = "--policy.steps matched refined --teacher.folder E/fine --refine.blocks 1 3 --refine.steps 3 --refine.student-steps 3"
SCORE = "--seeds 2 --protocol.students convnet:width=8,depth=2 --protocol.epochs 10 --json"

COMMANDS = {
    "R/dim2023": TRAIN,
    "R/fresh": f"{TRAIN} --pool.source fresh --matching.distance pairs --fit.clip-norm 1 --fit.precision bf16",
    "R/gan": f"{GAN} --matching.distance kernel",
    "R/moments": f"{GAN} --matching.distance moments",
    "R/characteristic": f"{GAN} --matching.distance characteristic",
    "R/diffusion": f"{TRAIN.replace('digits-dim', 'fashion-diffusion-small')} --dataset digits --generator.width 8",
    "E/mtt": f"{EXPERTS}",
    "E/gsam": f"{EXPERTS} --experts.optimizer gsam --experts.waypoints 3 --experts.together 2",
    "E/fine": f"{EXPERTS} --experts.every 0.5 --experts.momentum 0.9 --experts.weight-decay 0.0005",
    "R/experts": f"{UNPOOLED} --pool.source experts --pool.experts E/fine --pool.together 2 --path-matching.weight 1"
    " --path-matching.experts E/fine --path-matching.steps 2 --path-matching.epochs 0.5 --path-matching.starts 0 2",
    "D/mtt": f"distill --recipe digits-mtt-ipc1 {LEARN}",
    "D/tesla": f"distill --recipe digits-tesla-ipc1 {LEARN}",
    "D/datm": f"distill --recipe digits-datm-ipc1 {LEARN} --trajectory.max-start-at-first 3 --trajectory.grows-for 1"
    " --images.init real",
    "D/mct": f"distill --recipe digits-mct-ipc1 {LEARN}",
    "D/unroll": f"distill --recipe digits-mtt-ipc1 {LEARN} --trajectory.gradient unroll --labels.kind teacher --images.ipc 2"
    " --trajectory.batch-size 10",
    "D/latents": f"distill --recipe digits-mtt-ipc1 {LEARN} --generator R/gan --images.space latents --images.optimizer adam"
    " --images.lr 0.05 --trajectory.distance direction --step-size.lr 0",
    "S/plain": f"{SAMPLE} --format safetensors",
    "S/filtered": f"{SAMPLE} --policy.steps filtered --teacher.folder E/fine --teacher.temperature 2 --format npz",
    "S/graded": f"{SAMPLE} --policy.steps graded --teacher.folder R/gan --hard",
    "S/matched": f"{SAMPLE} --policy.steps filtered matched --teacher.folder E/fine --teacher.top-k 3 --format safetensors",
    "S/trajectory": f"{SAMPLE} {REFINE} --hard --format latents",
    "S/moments": f"{SAMPLE} {REFINE.replace(' --refine.student-steps 3', '')} --refine.by moments --format safetensors",
    "S/webdataset": f"{SAMPLE} --format webdataset",
    "S/parquet": f"{SAMPLE} --format parquet",
    "S/anchored": f"{SAMPLE} {REFINE} --format generator",
    "S/diffusion": "sample R/diffusion --counts 3=2 7=1 --sampler.steps 2 --sampler.scheduler heun",
    "scores/fixed.json": "evaluate S/plain S/matched D/datm --controls random herding k-center forgetting el2n"
    f" --coreset-end hardest {SCORE}",
    "scores/stream.json": f"evaluate R/gan S/anchored --ipc 1 2 --track stream fixed --controls oracle full"
    f" --teacher.folder E/fine {SCORE}",
    "scores/coverage.json": "coverage R/gan S/plain --samples 100 --json",
}


def _hash(parts: list[bytes]) -> str:
    state = hashlib.blake2b(digest_size=12)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def _content(path: Path) -> list[bytes] | None:
    """What is computed of a file, without times, versions and paths; None for files that hold nothing else."""
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as handle:
            return [part for name in sorted(handle.keys()) for part in (name.encode(), handle.get_tensor(name).tobytes())]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return [part for name in sorted(arrays.files) for part in (name.encode(), arrays[name].tobytes())]
    if path.suffix == ".png":
        with Image.open(path) as image:
            return [np.asarray(image).tobytes()]
    if path.suffix in (".bin", ".tar", ".parquet"):
        return [path.read_bytes()]
    if path.name == "metrics.jsonl":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        return [json.dumps({k: v for k, v in record.items() if k not in ("seconds", "crc")}).encode() for record in records]
    return None


def _scores(path: Path) -> list[bytes]:
    rows = json.loads(path.read_text())
    rows = rows["scores"] if "scores" in rows else rows["coverage"]
    kept = ("name", "track", "ipc", "student", "labels", "accuracies", "metrics", "steps", "distinct_images", "bytes")
    return [json.dumps({key: row[key] for key in kept if key in row}).encode() for row in rows]


def digests(command: list[str], folder: Path) -> dict[str, str]:
    """Run all commands in a folder and digest what they leave, by path."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    found: dict[str, str] = {}
    for out, line in COMMANDS.items():
        named = out if out.startswith("scores/") else f"--out {out}"
        (folder / out).parent.mkdir(exist_ok=True)
        arguments = [*command, *shlex.split(line), *named.split()]
        done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{out}: {shlex.join(arguments)}\n{done.stderr}")
        own = {}
        if out.startswith("scores/"):
            own[out] = _hash(_scores(folder / out))
        for path in sorted((folder / out).rglob("*")):
            content = _content(path) if path.is_file() else None
            if content is not None:
                name = path.relative_to(folder).as_posix()
                own["data".join(name.split(path.stem)) if path.stem.startswith("data-") else name] = _hash(content)
        print(f"{out}: {_hash([json.dumps(own).encode()])}", flush=True)
        found |= own
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", default=f"{Path(sys.executable).parent / 'dim'}", help="how to call dim")
    parser.add_argument("--out", type=Path, help="write the digests to this file")
    parser.add_argument("--compare", type=Path, help="compare with the digests in this file; exit status 1 if any differs")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = digests(shlex.split(settings.command), Path(scratch))
    if settings.out:
        settings.out.write_text(json.dumps(found, indent=1) + "\n")
    if settings.compare:
        before = json.loads(settings.compare.read_text())
        differ = [name for name in sorted(before.keys() | found.keys()) if before.get(name) != found.get(name)]
        print(f"{len(before)} digests before, {len(found)} now, {len(differ)} differ", *differ, sep="\n  ")
        return 1 if differ else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
