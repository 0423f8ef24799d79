#!/usr/bin/env python3
"""Runs the README's own commands, so that the README stays true.

    python3 tests/readme.py setup main test     # any of them, in this order or another

A fenced block that follows a line `<!-- readme: NAME -->` belongs to the part NAME. `setup` and
`test` are run as they are. Of `main`, the block `serve` is started and waited for, then each
command of `embed`, `neighbours` and `command-line` must succeed and its reply be what the README
says around it. Needs no more than Python's standard library, and curl.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
URL = "http://127.0.0.1:8080"
START_SECONDS = 1800  # the first start compiles


def blocks(name):
    """Commands of a part: each line of its block, continued lines joined."""
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"<!-- readme: {name} -->\n+```sh\n(.*?)```", text, re.S)
    if not found:
        sys.exit(f"README.md has no block after <!-- readme: {name} -->")
    lines = found[1].replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def shell(command, **kw):
    print(f"$ {command}", flush=True)
    return subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, check=True, text=True, **kw)


def output(command, **kw):
    return shell(command, stdout=subprocess.PIPE, **kw).stdout


def ready():
    try:
        return urllib.request.urlopen(f"{URL}/readyz", timeout=5).status == 200
    except (OSError, urllib.error.URLError):
        return False


def serve(data_dir):
    """Starts the README's server in its own process group, on an empty store."""
    if ready():
        sys.exit(f"something answers on {URL} already: stop it first")
    (command,) = blocks("serve")
    env = os.environ | {"LATENTD_DATA_DIR": data_dir}
    server = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=ROOT, env=env, start_new_session=True)
    deadline = time.time() + START_SECONDS
    while not ready():
        if server.poll() is not None or time.time() > deadline:
            stop(server)
            sys.exit(f"`{command}` did not become ready")
        time.sleep(0.2)
    return server


def stop(server):
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)


def main_job():
    data_dir = tempfile.mkdtemp(prefix="latentd-readme-")
    server = serve(data_dir)
    try:
        (embed,) = blocks("embed")
        reply = json.loads(output(embed))
        vector = reply["results"][0]["embedding"]
        assert len(vector) == reply["dim"] and abs(sum(x * x for x in vector) - 1) < 1e-3, reply
        *puts, search = blocks("neighbours")
        for put in puts:
            output(put)
        found = json.loads(output(search))
        query = re.search(r"examples/([a-z-]+)-\d+\.jpg", search)[1]
        nearest = found["neighbours"][0]["id"]
        assert nearest.startswith(query), f"the nearest to a {query} is {nearest}: {found}"
    finally:
        stop(server)
    assert server.returncode == 0, f"the server ended with {server.returncode} on SIGTERM"
    with tempfile.TemporaryDirectory() as scratch:
        env = os.environ | {"LATENTD_DATA_DIR": data_dir, "TMPDIR": scratch}
        for command in blocks("command-line"):
            shell(command, env=env)
    shutil.rmtree(data_dir)
    for path in ROOT.glob("examples.*"):
        path.unlink()


def main():
    parts = {
        "setup": lambda: [shell(c) for c in blocks("setup")],
        "test": lambda: [shell(c) for c in blocks("test")],
        "main": main_job,
    }
    for name in sys.argv[1:] or parts:
        parts[name]()
        print(f"README, {name}: passed", flush=True)


if __name__ == "__main__":
    main()
