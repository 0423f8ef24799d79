#!/usr/bin/env python3
"""Fetch ONNX Runtime's shared library from its PyPI wheel and check its SHA-256.

Usage: fetch_onnxruntime.py [--flavour cpu|gpu] [--into DIR] < onnxruntime.tsv

Needs Python 3.8 with pip; the interpreter's own version does not matter, since the wheel
is only unpacked. Prints the path of the library. Does nothing when it is there already.
`latentd runtime install` runs this same text.
"""

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

PIP_SECONDS = 600


class Refused(Exception):
    """An error for the person who runs this, in one line."""


def rows(table, flavour):
    """The table's lines for this flavour and machine: (package, version, tag, file, sha256)."""
    system, machine = platform.system().lower(), platform.machine()
    found = []
    for line in table:
        if line.startswith("#") or not line.strip():
            continue
        fields = line.rstrip("\n").split("\t")
        if fields[:3] == [flavour, system, machine]:
            found.append(fields[3:])
    if not found:
        raise Refused(
            f"no {flavour} build of ONNX Runtime is known for {system} {machine}: "
            "install one and set ORT_DYLIB_PATH to its library"
        )
    return found


def cache_folder(package, version):
    """The per-user cache, as models/src/runtime.rs looks for it."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "latentd", f"{package}-{version}")


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def download(package, version, tag, folder):
    """Run pip; gives the wheel's path."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input",
        "--disable-pip-version-check", "--retries", "2", "--timeout", "20",
        "--no-deps", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", "3.12", "--platform", tag, "--dest", folder,
        f"{package}=={version}",
    ]  # fmt: skip
    try:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=PIP_SECONDS, check=False, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Refused(f"pip did not fetch {package} {version} within {PIP_SECONDS} s") from None
    if run.returncode != 0:
        if "No module named pip" in run.stdout:
            raise Refused(
                f"{sys.executable} has no pip: install it (Debian: apt install python3-pip), "
                "or set ORT_DYLIB_PATH to a libonnxruntime"
            )
        lines = [line for line in run.stdout.splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no reason given")
        raise Refused(
            f"pip could not fetch {package} {version} ({reason.strip()}): check the network, "
            "or set ORT_DYLIB_PATH to a libonnxruntime"
        )
    wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
    if len(wheels) != 1:
        raise Refused(f"pip left {len(wheels)} wheels where one was expected")
    return os.path.join(folder, wheels[0])


def unpack(wheel, name, expected, target):
    """Take one library out of the wheel; it appears in `target` whole and checked, or not at all."""
    part = f"{target}.part"
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(f"onnxruntime/capi/{name}") as source, open(part, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    actual = sha256(part)
    if actual != expected:
        os.unlink(part)
        raise Refused(f"{name} has SHA-256 {actual}, but {expected} was expected: it was not installed")
    os.chmod(part, 0o755)
    os.replace(part, target)


def fetch(table, flavour, into):
    files = rows(table, flavour)
    package, version, tag = files[0][:3]
    folder = into or cache_folder(package, version)
    os.makedirs(folder, exist_ok=True)
    main = os.path.join(folder, files[0][3])
    # Runs at the same time wait here, then find the work done. The main library is moved
    # into place last, so that whoever sees it sees the rest.
    with open(os.path.join(folder, ".lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [f for f in reversed(files) if not os.path.exists(os.path.join(folder, f[3]))]
        if missing:
            print(f"fetching ONNX Runtime {version} ({flavour}) into {folder}", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
                wheel = download(package, version, tag, scratch)
                for _, _, _, name, expected in missing:
                    unpack(wheel, name, expected, os.path.join(folder, name))
    return main


def main():
    parser = argparse.ArgumentParser(description="Fetch ONNX Runtime from PyPI.")
    parser.add_argument("--flavour", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--into", help="folder; by default one in the per-user cache")
    options = parser.parse_args()
    try:
        print(fetch(sys.stdin, options.flavour, options.into))
    except Refused as error:
        sys.exit(f"ONNX Runtime: {error}")
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        sys.exit(f"ONNX Runtime could not be fetched: {error}")


if __name__ == "__main__":
    main()
