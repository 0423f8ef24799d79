#!/usr/bin/env python3
"""The distributed store beside the embedded one, through HTTP, in one run.

    python3 tests/engines/compare.py [--items 10000] [--dim 128]

Starts a Milvus of its own (as milvus.py does, with Milvus' own time tick of 200 ms), one latentd on it and one on the
embedded store, gives both the same random vectors, and times the same requests to each in turns, from one Python
process. Prints a table: figures are those of this machine, the ratio between the two columns is what counts.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit
import http.client
import threading

import milvus as engines
from serving import serve

CONTRACT = engines.CONTRACT
local = threading.local()


def call(method, url, body):
    """A call on a connection that stays open."""
    parts = urlsplit(url)
    connections = local.__dict__.setdefault("connections", {})
    if parts.netloc not in connections:
        connections[parts.netloc] = http.client.HTTPConnection(parts.netloc, timeout=120)
    connection = connections[parts.netloc]
    data = None if body is None else json.dumps(body)
    connection.request(method, parts.path, data, {"content-type": "application/json"})
    reply = connection.getresponse()
    text = reply.read()
    assert reply.status in (200, 201), (reply.status, text[:300])
    return json.loads(text)


def timed(work, count, clients=1):
    """Calls a second, and milliseconds at the median and the 99th percentile."""
    def one(n):
        began = time.perf_counter()
        work(n)
        return time.perf_counter() - began
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        took = sorted(pool.map(one, range(count)))
    whole = time.perf_counter() - began
    return count / whole, 1e3 * statistics.median(took), 1e3 * took[int(len(took) * 0.99)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    chance = random.Random(1)
    vectors = [[round(chance.gauss(0, 1), 4) for _ in range(options.dim)] for _ in range(options.items)]
    queries = [[x + chance.gauss(0, 0.5) for x in chance.choice(vectors)] for _ in range(400)]
    for name in [n for n in engines.SETTINGS if n != "ROOTCOORD_MAXDATABASENUM"]:
        del engines.SETTINGS[name]
    scratch = Path(tempfile.mkdtemp(prefix="latentd-compare-"))
    milvus = engines.Milvus(scratch)
    milvus.start()
    milvus.wait()
    embedded = serve(scratch / "embedded")
    distributed = serve(scratch / "distributed", "--store", f"{milvus.url}/bench")
    urls = {"embedded": embedded[1], "milvus": distributed[1]}
    rows = {}

    def note(what, engine, figure):
        rows.setdefault(what, {})[engine] = figure

    try:
        for engine, url in urls.items():
            began = time.perf_counter()
            for start in range(0, options.items, 500):
                part = range(start, min(start + 500, options.items))
                items = [{"id": str(n), "vector": vectors[n], "contract": CONTRACT,
                          "metadata": {"n": n % 100}} for n in part]
                call("POST", f"{url}/items", {"items": items})
            note("items/s in bulk (500 a request)", engine, f"{options.items / (time.perf_counter() - began):.0f}")
        # Milvus seals, and builds its index, in the background.
        time.sleep(5)
        search = {"contract": CONTRACT, "k": 10}
        for clients in (1, 8):
            for engine, url in urls.items():
                rate, median, worst = timed(
                    lambda n: call("POST", f"{url}/search", {**search, "vector": queries[n]}), 400, clients)
                note(f"search k=10, {clients} client(s): QPS; p50, p99 ms", engine,
                     f"{rate:.0f}; {median:.1f}, {worst:.1f}")
        for engine, url in urls.items():
            rate, median, worst = timed(
                lambda n: call("POST", f"{url}/search", {**search, "vector": queries[n], "filter": {"n": n % 100}}),
                200)
            note("search with a 1 % filter: QPS; p50, p99 ms", engine, f"{rate:.0f}; {median:.1f}, {worst:.1f}")
        for clients in (1, 16):
            for engine, url in urls.items():
                rate, median, worst = timed(
                    lambda n: call("PUT", f"{url}/items/w{clients}-{n}",
                                   {"vector": queries[n], "contract": CONTRACT}), 200, clients)
                note(f"PUT of a vector, {clients} client(s): a second; p50, p99 ms", engine,
                     f"{rate:.0f}; {median:.1f}, {worst:.1f}")

        def write_then_read(url, n):
            call("PUT", f"{url}/items/r{n}", {"vector": queries[n], "contract": CONTRACT})
            call("GET", f"{url}/items/r{n}", None)

        for engine, url in urls.items():
            _, median, worst = timed(lambda n: write_then_read(url, n), 40)
            note("PUT, then GET of the same item: p50, p99 ms", engine, f"{median:.1f}, {worst:.1f}")
    finally:
        for server, _ in (embedded, distributed):
            server.terminate()
            server.wait(60)
        milvus.kill()
    print(f"{options.items} items of {options.dim} numbers\n\n| | embedded | milvus |\n|---|---|---|")
    for what, figures in rows.items():
        print(f"| {what} | {figures['embedded']} | {figures['milvus']} |")


if __name__ == "__main__":
    main()
