#!/usr/bin/env python3
"""Compares the trainer's step with PyTorch's on this machine, in turns, and prints the ratios.

    cargo build --release -p latentd-trainer
    python3 trainer/benches/compare.py --arch resnet18 --width 0.25 --image-size 32 --batch 256 --steps 5

Each round runs the trainer, PyTorch NCHW and PyTorch channels-last one after the other, so that a
machine that slows down slows all of them. The figure of each is its median over the rounds; the
ratios are medians of the rounds' own ratios. `--python` names an interpreter that has torch.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nexit {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trainer", default=str(HERE.parents[1] / "target/release/latentd-trainer"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--width", default="0.25")
    parser.add_argument("--image-size", default="32")
    parser.add_argument("--batch", default="256")
    parser.add_argument("--steps", default="5")
    parser.add_argument("--hidden", default="1024")
    parser.add_argument("--projection", default="128")
    parser.add_argument("--threads", default=str(len(os.sched_getaffinity(0))))
    parser.add_argument("--precision", choices=["highest", "high", "medium"], default="high")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    args = parser.parse_args()

    names = ("arch", "width", "image_size", "batch", "steps", "hidden", "projection", "threads", "precision")
    shape = [part for name in names for part in (f"--{name.replace('_', '-')}", getattr(args, name))]
    torch = [args.python, str(HERE / "pytorch_byol.py"), *shape]
    rounds = []
    for _ in range(args.rounds):
        row = {"latentd": run([args.trainer, "bench", *shape, "--json"])}
        for layout in ("nchw", "channels_last"):
            row |= run([*torch, "--layout", layout])
        rounds.append(row)
        if not args.json:
            print("  ".join(f"{k} {v['images_per_s']:.1f}/s" for k, v in row.items()), file=sys.stderr)

    def median(name, field):
        return statistics.median(row[name][field] for row in rounds)

    def ratio(layout):
        return statistics.median(r["latentd"]["images_per_s"] / r[layout]["images_per_s"] for r in rounds)

    result = {
        "command": " ".join(["compare.py", *shape, "--rounds", str(args.rounds)]),
        "machine": f"{cpu_name()}, {args.threads} threads",
        "images_per_s": {name: median(name, "images_per_s") for name in rounds[0]},
        "peak_rss_mib": {name: median(name, "peak_rss_mib") for name in rounds[0]},
        "latentd_over_pytorch": {name: ratio(name) for name in ("nchw", "channels_last")},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
