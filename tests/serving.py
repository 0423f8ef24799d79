"""What the Python tests share: the built programs, and a server of one's own on a free port."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def program(name):
    """A built program."""
    return TARGET / "release" / name


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve(data_dir, *arguments):
    """Starts `latentd serve`, waits until it is ready, and gives the process and its address."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [ROOT / "tools/with-ort", program("latentd"), "serve", "--listen", url.removeprefix("http://")]
    command += ["--data-dir", data_dir, "--log", "warn", *arguments]
    server = subprocess.Popen([str(c) for c in command], cwd=ROOT)
    for _ in range(300):
        try:
            if urllib.request.urlopen(f"{url}/readyz", timeout=5).status == 200:
                return server, url
        except OSError:
            time.sleep(0.1)
        if server.poll() is not None:
            break
    server.kill()
    sys.exit("the server did not become ready")


@contextlib.contextmanager
def served(*arguments):
    """The address of a server on a data folder of its own, which ends in order and with status 0."""
    with tempfile.TemporaryDirectory() as data:
        server, url = serve(data, *arguments)
        try:
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        assert server.returncode == 0, server.returncode
