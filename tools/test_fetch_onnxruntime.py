#!/usr/bin/env python3
"""Tests of fetch_onnxruntime.py and with-ort on a wheel made here; nothing is fetched from outside."""

import hashlib
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import unittest
import zipfile

TOOLS = pathlib.Path(__file__).resolve().parent
TAG = "manylinux_2_28_x86_64"
LIBRARY = b"stands for a library"


def wheel(folder, library):
    """A wheel as pip wants it, with two libraries."""
    info = "onnxruntime-9.9.9.dist-info"
    with zipfile.ZipFile(folder / f"onnxruntime-9.9.9-cp312-cp312-{TAG}.whl", "w") as archive:
        archive.writestr("onnxruntime/capi/libmain.so.9.9.9", library)
        archive.writestr("onnxruntime/capi/libother.so", b"other")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: onnxruntime\nVersion: 9.9.9\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-{TAG}\n")
        archive.writestr(f"{info}/RECORD", "")


def table():
    machine = [platform.system().lower(), platform.machine()]
    rows = [("libmain.so.9.9.9", LIBRARY), ("libother.so", b"other")]
    lines = [
        ["cpu", *machine, "onnxruntime", "9.9.9", TAG, name, hashlib.sha256(data).hexdigest()]
        for name, data in rows
    ]
    return "# comment\n" + "".join("\t".join(line) + "\n" for line in lines)


class Fetch(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.links = pathlib.Path(scratch.name, "links")
        self.cache = pathlib.Path(scratch.name, "cache")
        self.links.mkdir()
        self.environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(self.cache),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.links),
        }
        self.environment.pop("ORT_DYLIB_PATH", None)
        self.folder = self.cache / "latentd" / "onnxruntime-9.9.9"

    def start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, TOOLS / "fetch_onnxruntime.py", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=self.environment,
        )  # fmt: skip

    def fetch(self, *arguments, rows=None):
        process = self.start(*arguments)
        out, err = process.communicate(table() if rows is None else rows)
        return process.returncode, out.strip(), err

    def libraries(self):
        return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))

    def test_fetches_once(self):
        wheel(self.links, LIBRARY)
        code, out, err = self.fetch()
        self.assertEqual(code, 0, err)
        self.assertEqual(pathlib.Path(out).read_bytes(), LIBRARY)
        self.assertEqual(self.libraries(), ["libmain.so.9.9.9", "libother.so"])
        for file in self.links.iterdir():
            file.unlink()
        self.assertEqual(self.fetch(), (0, out, ""))

    def test_at_the_same_time(self):
        wheel(self.links, LIBRARY)
        processes = [self.start() for _ in range(4)]
        for process in processes:
            process.stdin.write(table())
            process.stdin.close()
        for process in processes:
            self.assertEqual(process.wait(), 0)
            self.assertEqual(pathlib.Path(process.stdout.read().strip()).read_bytes(), LIBRARY)
            process.stdout.close()
            process.stderr.close()

    def test_another_checksum_is_refused(self):
        wheel(self.links, b"tampered with")
        code, out, err = self.fetch()
        self.assertNotEqual(code, 0)
        self.assertIn("SHA-256", err)
        self.assertNotIn("libmain.so.9.9.9", self.libraries())
        self.assertFalse([p for p in self.folder.iterdir() if "part" in p.name or "download" in p.name])

    def test_what_cannot_be_fetched_is_told_in_a_line(self):
        code, _, err = self.fetch()
        self.assertNotEqual(code, 0)
        error = err.strip().splitlines()[-1]
        self.assertIn("pip could not fetch onnxruntime 9.9.9", error)
        self.assertIn("ORT_DYLIB_PATH", error)

    def test_an_unknown_machine_is_told(self):
        code, _, err = self.fetch("--flavour", "gpu")
        self.assertNotEqual(code, 0)
        self.assertIn("no gpu build", err)

    def with_ort(self, **extra):
        run = subprocess.run(
            [TOOLS / "with-ort", "sh", "-c", 'echo "[$ORT_DYLIB_PATH] $*"', "sh", "a b", "c"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**self.environment, **extra}, check=True,
        )  # fmt: skip
        return run.stdout.strip(), run.stderr

    def test_with_ort_keeps_a_library_that_is_named(self):
        self.assertEqual(self.with_ort(ORT_DYLIB_PATH="/some/lib.so"), ("[/some/lib.so] a b c", ""))

    def test_with_ort_finds_the_cached_one(self):
        rows = (TOOLS / "onnxruntime.tsv").read_text().splitlines()
        version = next(row.split("\t")[4] for row in rows if row.startswith("cpu\t"))
        library = self.cache / "latentd" / f"onnxruntime-{version}" / f"libonnxruntime.so.{version}"
        library.parent.mkdir(parents=True)
        library.touch()
        # The PATH holds no python3: finding must not need it.
        found = self.with_ort(PATH="/nonexistent:/bin" if not pathlib.Path("/bin/python3").exists() else "/bin")
        self.assertEqual(found, (f"[{library}] a b c", ""))

    def test_with_ort_starts_the_program_without_one(self):
        out, err = self.with_ort()
        self.assertEqual(out, "[] a b c")
        self.assertIn("pip could not fetch", err)


if __name__ == "__main__":
    unittest.main()
