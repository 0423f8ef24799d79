#!/usr/bin/env python3
"""Soak: load on a server for as long as asked, its memory over time, and failure when that grows.

    tests/load/soak.py --minutes 60
    tests/load/soak.py --minutes 10 --binary target/release/latentd --connections 16

Starts a server of its own. Its clients send pictures of which most come once and some come again (bytes are added
behind a JPEG's end, which changes its hash but not its pixels), break some off, damage some, hang up on some, and give
some a deadline that passes. Items are replaced again and again, so that the index stays small. Memory is compared between the second and the last quarter of the time: by then caches and
allocators have what they keep. Only Python's standard library.
"""
import argparse
import collections
import http.client
import pathlib
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPECTED = {"hung up", "cut off", 200, 201, 304, 400, 408, 415, 422, 429, 503, 504}


def start(binary, data):
    """The server's process and port."""
    command = [binary, "serve", "--listen", "127.0.0.1:0", "--data-dir", data, "--cache-mib", "8", "--log", "info"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    port = None
    for line in process.stderr:
        if "serving on http://" in line:
            port = int(line.split("serving on http://")[1].split()[0].rsplit(":", 1)[1])
        if "ready" in line:
            break
    # A pipe that nobody reads would stop the server.
    threading.Thread(target=lambda: collections.deque(process.stderr, maxlen=0), daemon=True).start()
    if port is None:
        sys.exit(f"the server did not start: {process.wait()}")
    return process, port


def resident_mib(process):
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def hang_up(port, picture):
    """Sends half a picture and leaves."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {len(picture)}\r\n\r\n"
        connection.sendall(head.encode() + picture[: len(picture) // 2])


def client(port, pictures, seed, until, counts, rest):
    dice = random.Random(seed)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while time.monotonic() < until:
        time.sleep(rest)
        picture = dice.choice(pictures)
        kind = dice.random()
        headers = {"content-type": "image/jpeg"}
        try:
            if kind < 0.02:
                hang_up(port, picture)
                counts["hung up"] += 1
                continue
            if kind < 0.05:
                at = dice.randrange(len(picture))
                picture = picture[:at] if kind < 0.035 else picture[:at] + b"\xff" * 40 + picture[at:]
            elif kind < 0.07:
                headers["x-request-timeout-ms"] = "1"
            elif kind < 0.8:
                picture += dice.randbytes(8)
            if kind > 0.95:
                connection.request("PUT", f"/items/{dice.randrange(200)}", picture, headers)
            elif kind > 0.9:
                connection.request("POST", "/search?k=5", picture, headers)
            else:
                connection.request("POST", "/embed", picture, headers)
            reply = connection.getresponse()
            reply.read()
            counts[reply.status] += 1
            if reply.status == 504:
                # Perhaps answered before the picture was read: then the server closes.
                connection.close()
        except (BrokenPipeError, ConnectionResetError) as error:
            # A deadline that passes while the picture is still being sent: the server answers and closes.
            counts["cut off" if 0.05 <= kind < 0.07 else type(error).__name__] += 1
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            counts[type(error).__name__] += 1
            connection.close()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--minutes", type=float, default=60)
    arguments.add_argument("--connections", type=int, default=16)
    arguments.add_argument("--rest", type=float, default=0, help="seconds between a client's requests")
    arguments.add_argument("--binary", default=str(ROOT / "target/release/latentd"))
    arguments.add_argument("--grows", type=float, default=0.05, help="share by which memory may grow")
    args = arguments.parse_args()
    pictures = [path.read_bytes() for path in sorted((ROOT / "examples").glob("*.jpg"))]
    with tempfile.TemporaryDirectory() as data:
        process, port = start(args.binary, data)
        try:
            sys.exit(run(args, process, port, pictures))
        finally:
            process.terminate()
            process.wait(60)


def run(args, process, port, pictures):
    began = time.monotonic()
    until = began + args.minutes * 60
    counts = collections.Counter()
    threads = [
        threading.Thread(target=client, args=(port, pictures, seed, until, counts, args.rest), daemon=True)
        for seed in range(args.connections)
    ]
    for thread in threads:
        thread.start()
    samples = []
    every = max(1.0, args.minutes * 60 / 40)
    while time.monotonic() < until:
        time.sleep(every)
        if process.poll() is not None:
            print(f"the server ended by itself: {process.returncode}")
            return 1
        samples.append(resident_mib(process))
        print(f"{(time.monotonic() - began) / 60:7.1f} min {samples[-1]:8.1f} MiB  {dict(counts)}", flush=True)
    for thread in threads:
        thread.join(150)
    quarter = max(1, len(samples) // 4)
    mean = lambda values: sum(values) / len(values)
    early, late = mean(samples[quarter : 2 * quarter] or samples), mean(samples[-quarter:])
    print(f"second quarter {early:.1f} MiB, last quarter {late:.1f} MiB: {late / early - 1:+.1%}")
    strange = {kind: n for kind, n in counts.items() if kind not in EXPECTED}
    if strange:
        print(f"unexpected: {strange}")
        return 1
    if late > early * (1 + args.grows):
        print("memory grows")
        return 1
    return 0


if __name__ == "__main__":
    main()
