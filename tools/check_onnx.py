#!/usr/bin/env python3
"""Checks an artefact with other people's programs: the ONNX checker, Pillow and ONNX Runtime.

    pip install onnx onnxruntime pillow numpy
    python3 tools/check_onnx.py models/NAME-vN

Nothing of latentd runs here. The graph goes through ONNX's own checker and strict shape inference;
the golden pictures go through Pillow's decode, resize and crop, then through the graph, and must
come out as `golden/expected.json` says (cosine at least 0.999: decoders of JPEG differ by a grey
level here and there).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image, ImageOps

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def preprocess(path, spec):
    """The manifest's `preprocess`, as Pillow and torchvision do it."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    size = (spec["width"], spec["height"])
    resample = FILTERS[spec["filter"]]
    if spec["policy"] == "squash":
        return np.asarray(picture.resize(size, resample))
    if spec["policy"] != "shortest_edge_center_crop":
        sys.exit(f"no check for the resize policy {spec['policy']}")
    shortest = spec["resize_shortest"]
    short = min(picture.size)
    scaled = tuple(shortest if edge == short else int(shortest * edge / short) for edge in picture.size)
    if scaled != picture.size:
        picture = picture.resize(scaled, resample)
    left, top = (round((edge - want) / 2) for edge, want in zip(scaled, size))
    return np.asarray(picture.crop((left, top, left + size[0], top + size[1])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--min-cosine", type=float, default=0.999)
    args = parser.parse_args()

    manifest = json.loads((args.artefact / "manifest.json").read_text())
    model = onnx.load(args.artefact / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)

    golden = args.artefact / "golden"
    expected = json.loads((golden / "expected.json").read_text())
    pixels = np.stack([preprocess(golden / e["picture"], manifest["preprocess"]) for e in expected])
    session = onnxruntime.InferenceSession(str(args.artefact / "model.onnx"))
    embeddings = session.run(["embedding"], {"image": pixels})[0]
    cosines = (embeddings * np.array([e["embedding"] for e in expected])).sum(1)
    print(
        f"{args.artefact}: opset {model.opset_import[0].version}, {len(model.graph.node)} nodes, "
        f"{len(expected)} golden pictures, cosine min {cosines.min():.6f} mean {cosines.mean():.6f}"
    )
    if cosines.min() < args.min_cosine:
        sys.exit(f"a golden picture is below {args.min_cosine}")


if __name__ == "__main__":
    main()
