#!/usr/bin/env python3
"""recall@10 against searches per second, build time and memory: latentd beside faiss and hnswlib.

    benches/neighbours/run.py fashion            Fashion-MNIST's 60,000 x 784 (Debian's dataset-fashion-mnist)
    benches/neighbours/run.py file BASE.npy      any vectors, e.g. of `latentd embed`; the last 1,000 are the queries
    benches/neighbours/run.py synthetic N DIM    N vectors around N/1000 centres

Makes a virtual environment with faiss-cpu, hnswlib and numpy in --work (from PyPI). Each engine builds its index in a
process of its own on --threads threads and searches with one query at a time on one; M = 16, efConstruction = 100.
--engines latentd,faiss,hnswlib chooses some of them; hnsw_rs, usearch, usearch_bf16 and hannoy are Rust crates, built
in benches/neighbours/crates; `store` is a latentd store that was filled on --threads threads and
is opened in a process of its own at each of --vectors f32,f16,int8 and --lengths (0 is the length it found itself);
`binary` is what signs around the mean find at best, by comparing all of them and taking the best 100, 200, 400, 800
by their vectors.
"""
import argparse, json, os, pathlib, struct, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CRATES = ["hnsw_rs", "usearch", "usearch_bf16", "hannoy"]
LENGTHS = [16, 32, 48, 64, 96, 128, 192, 256]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fashion", "file", "synthetic", "peer"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/latentd-neighbours"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--engines", default="latentd,faiss,hnswlib")
    parser.add_argument("--vectors", default="f32,f16,int8")
    parser.add_argument("--lengths", default="0")
    parser.add_argument("--latentd", default="", help="a built benchmark to run in place of `cargo bench`")
    return parser.parse_args()


def environment(work):
    python = work / "venv/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "faiss-cpu", "hnswlib"], check=True)
    return python


def fashion(work):
    import gzip, numpy
    folder = work / "fashion"
    if not folder.exists():
        subprocess.run(["apt-get", "download", "dataset-fashion-mnist"], cwd=work, check=True)
        subprocess.run(["dpkg", "-x", next(work.glob("dataset-fashion-mnist*.deb")), folder], check=True)

    def load(name):
        data = gzip.open(next(folder.rglob(name))).read()
        count = struct.unpack(">i", data[4:8])[0]
        return numpy.frombuffer(data, dtype=numpy.uint8, offset=16).reshape(count, 784).astype(numpy.float32)

    return load("train-images*.gz"), load("t10k-images*.gz")


def synthetic(count, dim, queries):
    import numpy
    random = numpy.random.default_rng(1)
    centres = random.standard_normal((max(count // 1000, 1), dim), dtype=numpy.float32)

    def some(count):
        out = numpy.empty((count, dim), dtype=numpy.float32)
        for at in range(0, count, 100_000):
            part = out[at:at + 100_000]
            part[:] = centres[random.integers(0, len(centres), len(part))]
            part += 0.7 * random.standard_normal(part.shape, dtype=numpy.float32)
        return out

    return some(count), some(queries)


def prepare(options):
    import numpy
    if options.what == "fashion":
        base, queries = fashion(options.work)
        queries = queries[: options.queries]
    elif options.what == "synthetic":
        base, queries = synthetic(int(options.rest[0]), int(options.rest[1]), options.queries)
    else:
        base = numpy.load(options.rest[0]).astype(numpy.float32)
        order = numpy.random.default_rng(1).permutation(len(base))
        base, queries = base[order[options.queries:]], base[order[: options.queries]]
    for name, rows in [("base", base), ("queries", queries)]:
        rows /= numpy.linalg.norm(rows, axis=1, keepdims=True)
        numpy.save(options.work / f"{name}.npy", rows)
    worst = numpy.full((len(queries), 10), -2, dtype=numpy.float32)
    for at in range(0, len(base), 50_000):
        scores = queries @ base[at:at + 50_000].T
        worst = numpy.sort(numpy.concatenate([worst, scores], axis=1), axis=1)[:, -10:]
    numpy.save(options.work / "worst.npy", worst[:, 0])


def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def peer(name, work, threads):
    import numpy
    base, queries = numpy.load(work / "base.npy", mmap_mode="r"), numpy.load(work / "queries.npy")
    worst, dim, before = numpy.load(work / "worst.npy"), base.shape[1], resident()
    if name == "faiss":
        import faiss
        faiss.omp_set_num_threads(threads)
        index = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        add = index.add
        def search(query): return index.search(query, 10)[1]
        def keep(length): index.hnsw.efSearch = length
    else:
        import hnswlib
        index = hnswlib.Index("ip", dim)
        index.init_index(len(base), ef_construction=100, M=16)
        index.set_num_threads(threads)
        add = index.add_items
        def search(query): return index.knn_query(query, 10, num_threads=1)[0]
        keep = index.set_ef
    began, cpu = time.perf_counter(), time.process_time()
    for at in range(0, len(base), 10_000):
        add(numpy.ascontiguousarray(base[at:at + 10_000]))
    print(json.dumps({"engine": name, "items": len(base), "build_s": time.perf_counter() - began,
                      "build_cpu_s": time.process_time() - cpu, "mib": resident() - before}), flush=True)
    if name == "faiss":
        faiss.omp_set_num_threads(1)
    for length in LENGTHS:
        keep(length)
        began = time.perf_counter()
        found = [search(query[None])[0] for query in queries]
        took = time.perf_counter() - began
        scores = numpy.stack([base[numpy.sort(rows.astype(int))] @ query for rows, query in zip(found, queries)])
        recall = float((scores >= worst[:, None] - 1e-6).mean())
        print(json.dumps({"engine": name, "ef": length, "qps": len(queries) / took, "recall": recall}), flush=True)


def binary(work):
    import numpy
    base, queries, worst = (numpy.load(work / f"{name}.npy", mmap_mode="r") for name in ["base", "queries", "worst"])
    mean = numpy.mean(base[:: max(len(base) // 20_000, 1)], axis=0)
    packed = numpy.concatenate([numpy.packbits(base[at:at + 50_000] > mean, axis=1) for at in range(0, len(base), 50_000)])
    for kept in [100, 200, 400, 800]:
        hits = 0
        for query, least in zip(queries[:200], worst):
            apart = numpy.bitwise_count(packed ^ numpy.packbits(query > mean)).sum(axis=1, dtype=numpy.int32)
            near = numpy.argpartition(apart, kept)[:kept]
            hits += min(int((base[numpy.sort(near)] @ query >= least - 1e-6).sum()), 10)
        print(json.dumps({"engine": "binary", "ef": kept, "qps": 0, "recall": hits / 2000}), flush=True)


def store(command, options):
    folder = options.work / "store"
    base, threads = options.work / "base.npy", str(options.threads)
    if not folder.exists():
        subprocess.run([*command, "fill", folder, base, threads, "f32"], cwd=ROOT, check=True)
    out = ""
    for vectors in options.vectors.split(","):
        for length in options.lengths.split(","):
            rest = [vectors, length, options.work / "queries.npy", options.work / "worst.npy"]
            opened = subprocess.run([*command, "open", folder, base, "1", *rest], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            out += opened.stdout
    return out


def table(lines):
    print("\n| engine | ef | recall@10 | searches/s | |\n|---|---|---|---|---|")
    for line in lines:
        if "open_s" in line:
            print(f"| {line['engine']} {line['vectors']} | {line['ef']} | {line['recall']:.4f} | {line['qps']:.0f} | {line['mib']:.0f} MiB, opened in {line['open_s']:.2f} s |")
        elif "build_s" in line:
            print(f"| {line['engine']} | | | | build {line['build_s']:.1f} s ({line['build_cpu_s']:.1f} s of CPU), {line['mib']:.0f} MiB |")
        else:
            note = f"filter leaves {line['filter_percent']} %" if "filter_percent" in line else ""
            print(f"| {line['engine']} | {line.get('ef', '')} | {line['recall']:.4f} | {line['qps']:.0f} | {note} |")


def main():
    options = arguments()
    if options.what == "peer":
        name = options.rest[0]
        return binary(options.work) if name == "binary" else peer(name, options.work, options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    python = environment(options.work)
    if pathlib.Path(sys.prefix) != options.work / "venv":
        os.execv(python, [str(python), *sys.argv])
    prepare(options)
    lines = []
    for engine in options.engines.split(","):
        command = [python, __file__, "peer", engine, "--work", options.work, "--threads", str(options.threads)]
        if engine in ("latentd", "store"):
            command = [options.latentd] if options.latentd else ["cargo", "bench", "-q", "--locked", "--bench", "neighbours", "--"]
        if engine == "latentd":
            command += [options.work / "base.npy", options.work / "queries.npy", str(options.threads)]
        if engine in CRATES:
            files = [options.work / f"{name}.npy" for name in ["base", "queries", "worst"]]
            build = ["cargo", "build", "-q", "--release", "--locked", "--target-dir", options.work / "target"]
            subprocess.run(build, cwd=ROOT / "benches/neighbours/crates", check=True)
            command = [options.work / "target/release/neighbours-crates", engine, *files, str(options.threads)]
        if engine == "store":
            out = store(command, options)
        else:
            out = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        lines += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        print(out, end="", flush=True)
    table(lines)


if __name__ == "__main__":
    main()
