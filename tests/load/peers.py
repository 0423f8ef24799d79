#!/usr/bin/env python3
"""latentd beside the servers that people would write instead, in one run.

Makes a virtual environment with FastAPI and LitServe, builds the least server in Rust (bare.rs), starts all three on
the same artefact, checks that their vectors are latentd's, and lets the load generator take turns between raw ONNX Runtime, latentd and the peers:

    python3 tests/load/peers.py
    python3 tests/load/peers.py --model models/mine-v1 --picture photo.jpg --seconds 5
"""

import argparse
import base64
import json
import math
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "load" / "peers"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# All packages together, as the tests are built: another choice would build the dependencies once more.
CARGO = ["--locked", "--quiet", "--workspace"]
PACKAGES = [
    "anyio==4.16.0", "fastapi==0.165.0", "litserve==0.2.19", "numpy==2.4.6", "onnxruntime==1.32.0",
    "orjson==3.13.0", "pillow==13.0.0", "uvicorn[standard]==0.54.0",
]  # fmt: skip
READY_SECONDS = 120
# Pillow and latentd decode JPEGs and round a little differently.
SAME = 0.99


def python(folder):
    """The interpreter of an environment that has the peers."""
    program, done = folder / "bin" / "python", folder / "packages.json"
    if not done.is_file() or json.loads(done.read_text()) != PACKAGES:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([program, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        done.write_text(json.dumps(PACKAGES))
    return program


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Peer:
    """A server in a process group of its own, ended with `stop`."""

    def __init__(self, name, command, port, path, model, as_json):
        self.name, self.port, self.path, self.as_json = name, port, path, as_json
        environment = {**os.environ, "PEER_MODEL": str(model), "OMP_NUM_THREADS": "1"}
        # No pipe of ours is held open by a server that outlives this script.
        self.log = open(TARGET / f"peer-{name}.log", "wb")
        self.process = subprocess.Popen(
            command, cwd=HERE, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def post(self, picture):
        body, kind = picture, "image/jpeg"
        if self.as_json:
            body, kind = json.dumps({"image": base64.b64encode(picture).decode()}).encode(), "application/json"
        url = f"http://127.0.0.1:{self.port}{self.path}"
        request = urllib.request.Request(url, body, {"content-type": kind})
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)["embedding"]

    def wait(self, picture):
        """Its first vector, once it answers."""
        until = time.monotonic() + READY_SECONDS
        while True:
            if self.process.poll() is not None:
                sys.exit(f"{self.name} ended at once: see {self.log.name}")
            try:
                return self.post(picture)
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def stop(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.log.close()


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)


def vector(model, picture):
    """latentd's vector of a picture, as `latentd embed` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "one.npy"
        command = [ROOT / "tools" / "with-ort", TARGET / "release" / "latentd", "embed", picture, "--model", model]
        subprocess.run([*command, "--out", out], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        data = out.read_bytes()
    # The npy format: 8 bytes, the header's length, the header, the floats.
    rows = data[10 + struct.unpack_from("<H", data, 8)[0] :]
    return struct.unpack(f"<{len(rows) // 4}f", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models" / "byol-cifar10-r18w25-v3")
    parser.add_argument("--picture", type=pathlib.Path, default=ROOT / "examples" / "outwear-1.jpg")
    parser.add_argument("--seconds", default="3")
    parser.add_argument("--rounds", default="3")
    arguments = parser.parse_args()
    model, picture = arguments.model.resolve(), arguments.picture.read_bytes()
    subprocess.run(["cargo", "build", "--release", *CARGO, "--bin", "latentd", "--example", "bare"], cwd=ROOT, check=True)
    program = python(TARGET / "peers-venv")
    cores = len(os.sched_getaffinity(0))
    bare, fast, lit = free_port(), free_port(), free_port()
    rust = [ROOT / "tools" / "with-ort", TARGET / "release" / "examples" / "bare", model, f"127.0.0.1:{bare}"]
    uvicorn = ["-m", "uvicorn", "fastapi_peer:app", "--port", str(fast), "--workers", str(cores), "--no-access-log"]
    peers = [
        Peer("bare", rust, bare, "/embed", model, as_json=False),
        Peer("fastapi", [program, *uvicorn], fast, "/embed", model, as_json=False),
        Peer("litserve", [program, "litserve_peer.py", str(lit)], lit, "/predict", model, as_json=True),
    ]
    try:
        ours = vector(model, arguments.picture.resolve())
        options = []
        for peer in peers:
            same = cosine(peer.wait(picture), ours)
            print(f"{peer.name}: cosine {same:.4f} with latentd's vector", flush=True)
            if same < SAME:
                sys.exit(f"{peer.name} gives other vectors: not the same work")
            option = "--peer-json" if peer.as_json else "--peer"
            options += [option, f"{peer.name}=127.0.0.1:{peer.port}{peer.path}"]
        options += ["--model", model, "--picture", arguments.picture.resolve()]
        options += ["--seconds", arguments.seconds, "--rounds", arguments.rounds]
        bench = ["cargo", "bench", *CARGO, "--bench", "load", "--", *map(str, options)]
        subprocess.run(bench, cwd=ROOT, check=True)
    finally:
        for peer in peers:
            peer.stop()


if __name__ == "__main__":
    main()
