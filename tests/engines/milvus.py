#!/usr/bin/env python3
"""The acceptance suite on a real Milvus, and its death and return under load.

    python3 tests/engines/milvus.py             # the suite and a death, as CI does
    python3 tests/engines/milvus.py --suite     # only the suite
    python3 tests/engines/milvus.py --rounds 5  # so many deaths
    python3 tests/engines/milvus.py --keep      # only starts the engine, and says where, until Ctrl-C

Milvus comes from PyPI (milvus 2.3.5: the server in one process) into target/milvus-venv, and runs in a scratch
folder and a process group of its own. The suite is `cargo test --workspace --test it` with STORE_TEST_URL: the same tests that
run on the embedded store. Then two latentd serve one engine while it is killed with SIGKILL and started again on
its data: what was acknowledged must be there, what was deleted must stay away, and both must become ready again by
themselves.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving import ROOT, TARGET, serve  # noqa: E402

PACKAGES = ["milvus==2.3.5", "setuptools<81"]
# What runs on every engine, and what only a distributed one has.
TESTS = [
    "acceptance::", "generations::", "milvus::", "items::", "search::", "similar::", "encodings::",
    "refresh::", "milvus_change::",
]  # fmt: skip
# Milvus reads its settings from the environment too.
SETTINGS = {
    # Every test has a database of its own.
    "ROOTCOORD_MAXDATABASENUM": "512",
    # A read of one's own write waits for the next tick.
    "PROXY_TIMETICKINTERVAL": "50",
    # Segments are sealed and indexed while the tests run, so that not only what is in memory is tested.
    "DATACOORD_SEGMENT_MAXLIFE": "10",
    "INDEXCOORD_SEGMENT_MINSEGMENTNUMROWSTOENABLEINDEX": "64",
}
CONTRACT = "00000000000000aa"


def server_program():
    """milvus-server, installed where it is not."""
    venv = TARGET / "milvus-venv"
    program = venv / "bin/milvus-server"
    if not program.exists():
        print(f"installing {PACKAGES[0]} into {venv}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([venv / "bin/pip", "install", "-q", "--disable-pip-version-check", *PACKAGES], check=True)
    if not program.exists():
        sys.exit(f"{program} is missing: the distributed engine cannot be tested here")
    return program


def quiet_port():
    """A free port that no outgoing connection is given: a client that tries it while nobody listens could be given
    that very port, be connected to itself, and keep Milvus from it."""
    while True:
        port = random.randrange(20_000, 30_000)
        if is_free(port):
            return port


def is_free(port):
    """As Milvus' launcher looks: what is left of connections of a process that died counts as taken for a minute."""
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False


class Milvus:
    """A Milvus of one's own in a folder, which outlives its death."""

    def __init__(self, folder):
        self.program, self.folder, self.port = server_program(), folder, quiet_port()
        self.process = None

    @property
    def url(self):
        return f"milvus://127.0.0.1:{self.port}"

    def start(self):
        # It would take another port, and say so nowhere.
        until(lambda: is_free(self.port), 90, True)
        # The launcher starts others and ends without them: the group is what is killed.
        log = open(self.folder / "milvus.log", "ab")
        environment = {**os.environ, **SETTINGS}
        command = [self.program, "--data", self.folder / "data", "--proxy-port", str(self.port)]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, start_new_session=True, env=environment
        )

    def wait(self, limit=120):
        began = time.time()
        while time.time() - began < limit:
            with socket.socket() as s:
                s.settimeout(1)
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                sys.exit(f"Milvus ended: see {self.folder}/milvus.log")
            time.sleep(0.2)
        sys.exit(f"Milvus did not start within {limit} s: does another one run on this machine?")

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def call(method, url, body=None):
    """Status and JSON of a reply; status 0 when there was none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=90) as reply:
            text = reply.read()
            return reply.status, (json.loads(text) if text.startswith(b"{") else text.decode())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")
    except OSError as error:
        return 0, {"error": str(error)}


def vector(version):
    return [1.0, version / 1000.0, 0.5, -0.25]


class Writer(threading.Thread):
    """Writes version after version of some ids; every fourth version is a deletion."""

    def __init__(self, name, url, stop):
        super().__init__()
        self.url, self.stop = url, stop
        self.ids = [f"{name}-{n}" for n in range(4)]
        self.tried, self.acknowledged, self.failed = {}, {}, 0

    def run(self):
        version = 0
        while not self.stop.is_set():
            version += 1
            for key in self.ids:
                self.tried[key] = version
                if version % 4 == 3:
                    status, _ = call("DELETE", f"{self.url}/items/{key}")
                    done = status in (204, 404)
                else:
                    body = {"vector": vector(version), "contract": CONTRACT, "metadata": {"v": version}}
                    status, _ = call("PUT", f"{self.url}/items/{key}", body)
                    done = status in (200, 201)
                if done:
                    self.acknowledged[key] = version
                else:
                    self.failed += 1
                    # What failed may have happened; it is tried again as a later version.
                    break


def ready(url):
    status, body = call("GET", f"{url}/readyz")
    return status, body.get("code") if isinstance(body, dict) else None


def until(what, limit, *wanted):
    began = time.time()
    while time.time() - began < limit:
        if what() in wanted:
            return time.time() - began
        time.sleep(0.1)
    sys.exit(f"{wanted} did not come within {limit} s; it is {what()}")


def expected(version):
    return None if version % 4 == 3 else version


def death_and_return(milvus, rounds, scratch):
    store = f"{milvus.url}/chaos?wait_ms=60000"
    servers = []
    for n in range(2):
        servers.append(serve(scratch / f"data{n}", "--store", store))
    urls = [url for _, url in servers]
    assert call("PUT", f"{urls[0]}/items/first", {"vector": vector(1), "contract": CONTRACT})[0] == 201
    acknowledged = 0
    for number in range(rounds):
        stop = threading.Event()
        writers = [Writer(f"{number}-{n}", urls[n % 2], stop) for n in range(6)]
        for writer in writers:
            writer.start()
        time.sleep(random.uniform(1, 3))
        milvus.kill()
        down = max(until(lambda: ready(url), 10, (503, "store_unavailable")) for url in urls)
        time.sleep(random.uniform(0, 2))
        milvus.start()
        began = time.time()
        for url in urls:
            until(lambda: ready(url)[0], 150, 200)
        back = time.time() - began
        time.sleep(4)
        stop.set()
        for writer in writers:
            writer.join()
        check(urls, writers)
        acknowledged += sum(sum(writer.acknowledged.values()) for writer in writers)
        failed = sum(writer.failed for writer in writers)
        print(f"round {number}: told down after {down:.1f} s, ready {back:.1f} s after the start,"
              f" {failed} writes failed, no acknowledged one was lost", flush=True)
    for server, _ in servers:
        server.terminate()
    assert all(server.wait(60) == 0 for server, _ in servers), "a latentd did not end well"
    print(f"{acknowledged} acknowledged writes over {rounds} deaths")
    assert acknowledged > 100 * rounds, "too few writes to tell anything"


def check(urls, writers):
    """Both servers must tell, after a moment, the last acknowledged version of each id, or one tried after it."""
    # All but the last few seconds is seen by everybody.
    time.sleep(6)
    for url in urls:
        until(lambda: call("GET", f"{url}/items/first")[0], 150, 200)
    for writer in writers:
        for key in writer.ids:
            least, most = writer.acknowledged.get(key, 0), writer.tried.get(key, 0)
            possible = {expected(version) for version in range(max(least, 1), most + 1)}
            if least == 0:
                possible.add(None)
            for url in urls:
                status, item = call("GET", f"{url}/items/{key}?include=vector")
                found = item["metadata"]["v"] if status == 200 else None
                assert status in (200, 404), (status, item)
                assert found in possible, f"{key}: {found} is none of {possible} (acknowledged {least})"
                hits = call("POST", f"{url}/search", {
                    "vector": vector(found or 1), "contract": CONTRACT, "k": 1000, "include": ["metadata"]})[1]
                there = [hit["metadata"].get("v") for hit in hits["neighbours"] if hit["id"] == key]
                assert there == ([] if found is None else [found]), f"{key}: search tells {there}, not {found}"


def suite(milvus):
    environment = {**os.environ, "STORE_TEST_URL": milvus.url}
    command = ["cargo", "test", "--release", "--locked", "--workspace", "--test", "it", "--", *TESTS]
    subprocess.run([*command, "--test-threads", "4"], cwd=ROOT, env=environment, check=True)


def main():
    scratch = Path(tempfile.mkdtemp(prefix="latentd-milvus-"))
    milvus = Milvus(scratch)
    began = time.time()
    milvus.start()
    try:
        milvus.wait()
        print(f"Milvus answers at {milvus.url} after {time.time() - began:.0f} s", flush=True)
        if "--keep" in sys.argv:
            signal.pause()
        suite(milvus)
        if "--suite" not in sys.argv:
            rounds = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else 1
            death_and_return(milvus, rounds, scratch)
        print(f"the distributed engine passed in {time.time() - began:.0f} s")
    except KeyboardInterrupt:
        pass
    finally:
        milvus.kill()
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
