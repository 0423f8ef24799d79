#!/usr/bin/env python3
"""From a folder of pictures to a served encoder, with the real programs.

    python3 tests/end_to_end.py

Trains for two epochs on 2,000 pictures, evaluates, exports, serves the artefact, and checks that
POST /embed gives what the exporter wrote into the golden vectors (cosine at least 0.9999) and that
a picture alone and in a batch of 32 gives the same vector (at least 0.99999). The pictures are
CIFAR-10's where ../shared/data is at hand (or LATENTD_SHARED_DATA names it), else the examples,
repeated. Needs only Python's standard library and the built programs.
"""

import base64
import json
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from pathlib import Path

from serving import ROOT, program, served

PER_CLASS = {"train": 200, "test": 50}


def shared_data():
    named = os.environ.get("LATENTD_SHARED_DATA")
    for folder in [Path(named)] if named else [p / "shared" / "data" for p in ROOT.parents]:
        if (folder / "cifar10-train.tar.gz").exists():
            return folder
    return None


def unpack_cifar(archive, split, to):
    """The first pictures of each class."""
    counts = {}
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            parts = Path(member.name).parts
            if not member.isfile() or parts[-3:-2] != (split,):
                continue
            counts[parts[-2]] = counts.get(parts[-2], 0) + 1
            if counts[parts[-2]] <= PER_CLASS[split]:
                target = to / split / parts[-2] / parts[-1]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())


def prepare(to):
    data = shared_data()
    if data:
        for split in PER_CLASS:
            unpack_cifar(data / f"cifar10-{split}.tar.gz", split, to)
        return "CIFAR-10"
    print("no ../shared/data: the example pictures stand in, repeated")
    pictures = sorted((ROOT / "examples").glob("*.jpg"))
    for split, count in (("train", 20), ("test", 2)):
        for picture in pictures:
            folder = to / split / picture.name.rsplit("-", 1)[0]
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                shutil.copy(picture, folder / f"{i}-{picture.name}")
    return "examples"


def run(*command, **kw):
    print("$", *command, flush=True)
    return subprocess.run([str(c) for c in command], check=True, cwd=ROOT, **kw)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def post(url, body, content_type):
    request = urllib.request.Request(url, body, {"content-type": content_type})
    return json.load(urllib.request.urlopen(request, timeout=60))


def check_served(artefact, url):
    golden = json.loads((artefact / "golden/expected.json").read_text())
    worst, files = 1.0, []
    for entry in golden:
        name, expected = entry["picture"], entry["embedding"]
        body = (artefact / "golden" / name).read_bytes()
        files.append(body)
        alone = post(f"{url}/embed", body, "application/octet-stream")["results"][0]["embedding"]
        worst = min(worst, cosine(alone, expected))
    print(f"served against exported: cosine at least {worst:.7f}")
    assert worst >= 0.9999
    inputs = [{"image": base64.b64encode(files[i % len(files)]).decode()} for i in range(32)]
    body = json.dumps({"inputs": inputs}).encode()
    batch = post(f"{url}/embed", body, "application/json")["results"]
    worst = 1.0
    for i, file in enumerate(files):
        alone = post(f"{url}/embed", file, "application/octet-stream")["results"][0]["embedding"]
        worst = min(worst, cosine(alone, batch[i]["embedding"]))
    print(f"alone against in a batch of 32: cosine at least {worst:.7f}")
    assert worst >= 0.99999


def main():
    # A build of other packages than those of `cargo test --workspace` would compile much of it again.
    if not all(program(name).exists() for name in ("latentd", "latentd-trainer")):
        run("cargo", "build", "--release", "--locked", "--workspace")
    with tempfile.TemporaryDirectory(prefix="latentd-e2e-") as scratch:
        scratch = Path(scratch)
        pictures, out, models = scratch / "pictures", scratch / "run", scratch / "models"
        print("pictures:", prepare(pictures))
        trainer = [ROOT / "tools/with-ort", program("latentd-trainer")]
        small = ["--epochs", "2", "--batch", "64", "--width", "0.125", "--hidden", "128", "--projection", "64"]
        run(*trainer, "train", pictures / "train", "--out", out, *small)
        run(*trainer, "eval", out, "--labelled", pictures, "--no-probe")
        run(*trainer, "export", out, "--name", "end-to-end", "--models", models, "--pictures", pictures / "test")
        with served("--model", models / "end-to-end-v1") as url:
            check_served(models / "end-to-end-v1", url)
    print("from pictures to a served encoder: passed")


if __name__ == "__main__":
    main()
