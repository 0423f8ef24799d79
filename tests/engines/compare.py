#!/usr/bin/env python3
"""The distributed store beside the embedded one, through HTTP, in one run.

    python3 tests/engines/compare.py [--items 10000] [--dim 128]

Starts a Milvus of its own (as milvus.py does, with Milvus' own time tick of 200 ms), one latentd on it and two on
embedded stores, one exact, one with a graph, gives all the same vectors around random centres, and times the same
requests to each in turns, from one Python process. Recall is the share of what the exact one finds. Prints a table:
figures are those of this machine and bounded by the client, the ratio between the columns is what counts.
"""

import argparse
import json
import random
import shutil
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
    for tries in range(2):
        try:
            connection.request(method, parts.path, data, {"content-type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
            break
        except (ConnectionError, http.client.BadStatusLine):
            # The server ends connections that were silent for a while.
            connection.close()
            if tries == 1:
                raise
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
    parser.add_argument("--rest", type=float, default=10, help="seconds between the writes and the searches")
    options = parser.parse_args()
    chance = random.Random(1)
    centres = [[chance.gauss(0, 1) for _ in range(options.dim)] for _ in range(100)]
    vectors = [[round(x + chance.gauss(0, 0.7), 4) for x in chance.choice(centres)] for _ in range(options.items)]
    queries = [[round(x + chance.gauss(0, 0.3), 4) for x in chance.choice(vectors)] for _ in range(400)]
    for name in [n for n in engines.SETTINGS if n != "ROOTCOORD_MAXDATABASENUM"]:
        del engines.SETTINGS[name]
    scratch = Path(tempfile.mkdtemp(prefix="latentd-compare-"))
    milvus = engines.Milvus(scratch)
    milvus.start()
    milvus.wait()
    servers = {
        "embedded, exact": serve(scratch / "exact", "--index", "exact"),
        "embedded, hnsw": serve(scratch / "graph", "--index", "hnsw"),
        "milvus, hnsw": serve(scratch / "distributed", "--store", f"{milvus.url}/bench"),
    }
    urls = {name: url for name, (_, url) in servers.items()}
    rows, exact = {}, None

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
        # Both link, or seal and build their index, in the background.
        time.sleep(options.rest)
        search = {"contract": CONTRACT, "k": 10}
        for engine, url in urls.items():
            found = [call("POST", f"{url}/search", {**search, "vector": query}) for query in queries]
            found = [{near["id"] for near in reply["neighbours"]} for reply in found]
            exact = exact or found
            note("recall@10", engine, f"{sum(len(a & b) for a, b in zip(exact, found)) / (10 * len(queries)):.4f}")
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
        for server, _ in servers.values():
            server.terminate()
            server.wait(60)
        milvus.kill()
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{options.items} items of {options.dim} numbers\n\n| | {' | '.join(urls)} |\n|---|{'---|' * len(urls)}")
    for what, figures in rows.items():
        print(f"| {what} | {' | '.join(figures[engine] for engine in urls)} |")


if __name__ == "__main__":
    main()
