#!/usr/bin/env python3
"""Checks the trainer on a GPU against its own CPU, and times it beside PyTorch on the same GPU.

    python3 trainer/benches/cuda.py --trainer ./latentd-trainer

Needs a GPU, an interpreter with torch (`--python`), and the trainer built with `--features cuda`; no
Rust, no CUDA toolkit. The trainer finds NVIDIA's libraries where torch's wheels put them. First
`bench --verify` at each precision, on a small-picture and a large-picture network: a failure is
reported and the script goes on. Then each case in turns with PyTorch (autocast to bfloat16,
channels-last, cuDNN's benchmark mode; with torch.compile too, if asked), so that a GPU that slows down
slows both. Prints JSON; the exit status is 1 if a check failed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# (arch, width, image size, batch, hidden, projection)
CASES = {
    "r18-32-b64": ("resnet18", "1.0", "32", "64", "1024", "128"),
    "r18w25-32-b128": ("resnet18", "0.25", "32", "128", "1024", "128"),
    "r50-224-b8": ("resnet50", "1.0", "224", "8", "4096", "256"),
    "r50-224-b256": ("resnet50", "1.0", "224", "256", "4096", "256"),
}
CHECKS = {
    "r18w25-32-b32": ("resnet18", "0.25", "32", "32", "256", "64"),
    "r50w25-96-b16": ("resnet50", "0.25", "96", "16", "256", "64"),
}
NAMES = ("arch", "width", "image-size", "batch", "hidden", "projection")


def flags(shape):
    return [part for name, value in zip(NAMES, shape) for part in (f"--{name}", value)]


def library_folders(python):
    """Folders with NVIDIA's libraries among the interpreter's packages."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    root = Path(done.stdout.strip()) / "nvidia"
    return [str(folder) for folder in sorted(root.glob("*/lib"))]


def run(command, env, timeout):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"took more than {timeout} s")


def read(done):
    """The JSON that a command printed, or what it said instead."""
    try:
        found = json.loads(done.stdout)
    except json.JSONDecodeError:
        found = {}
    if done.returncode != 0:
        found["failed"] = f"exit {done.returncode}: {done.stderr.strip()[-600:]}"
    return found


def verify(args, env):
    results = {}
    for name, shape in CHECKS.items():
        for precision in ("highest", "high", "medium"):
            command = [args.trainer, "bench", "--verify", *flags(shape)]
            command += ["--device", args.device, "--precision", precision]
            results[f"{name} {precision}"] = found = read(run(command, env, args.timeout))
            verdict = found.get("failed", "ok")
            print(f"verify {name} {precision}: {verdict}", file=sys.stderr)
    return results


def compare(args, env, name, shape):
    sides = {
        "latentd": [args.trainer, "bench", "--json", "--device", args.device, "--tune"],
        "pytorch": [args.python, str(HERE / "pytorch_byol.py"), "--layout", "channels_last"],
    }
    sides["pytorch"] += ["--device", args.device, "--warmup", "10"]
    if args.compile:
        sides["pytorch-compiled"] = [*sides["pytorch"], "--compile"]
    common = [*flags(shape), "--steps", str(args.steps), "--precision", args.precision]
    rounds = []
    for _ in range(args.rounds):
        row = {}
        for side, command in sides.items():
            found = read(run([*command, *common], env, args.timeout))
            row[side] = found.get("channels_last", found)
        rounds.append(row)
    failed = [found["failed"] for row in rounds for found in row.values() if "failed" in found]
    if failed:
        print(f"{name}: {failed[0]}", file=sys.stderr)
        return {"failed": failed[0], "rounds": rounds}
    speed = {side: statistics.median(row[side]["images_per_s"] for row in rounds) for side in sides}

    def ratio(side):
        return statistics.median(r["latentd"]["images_per_s"] / r[side]["images_per_s"] for r in rounds)

    result = {
        "images_per_s": speed,
        "latentd_over": {side: ratio(side) for side in sides if side != "latentd"},
        "rounds": rounds,
    }
    print(f"{name}: {result['images_per_s']} ratios {result['latentd_over']}", file=sys.stderr)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--trainer", default=str(HERE.parents[1] / "target/release/latentd-trainer"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", choices=["highest", "high", "medium"], default="medium")
    parser.add_argument("--cases", nargs="*", choices=sorted(CASES), default=list(CASES))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one command")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--skip-verify", action="store_true")
    args = parser.parse_args()
    folders = [*library_folders(args.python), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = {**os.environ, "LD_LIBRARY_PATH": ":".join(folders), "LATENTD_LOG": "warn"}
    checks = {} if args.skip_verify else verify(args, env)
    cases = {name: compare(args, env, name, CASES[name]) for name in args.cases}
    print(json.dumps({"command": " ".join(sys.argv), "verify": checks, "cases": cases}, indent=2))
    sys.exit(any("failed" in found for found in [*checks.values(), *cases.values()]))


if __name__ == "__main__":
    main()
