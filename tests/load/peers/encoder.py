"""The same encoder for every Python peer: Pillow, numpy and ONNX Runtime, one session a process."""

import io
import json
import os
import pathlib

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Encoder:
    """An artefact of latentd's, served as somebody would who has its manifest and not latentd."""

    def __init__(self, folder=None):
        folder = pathlib.Path(folder or os.environ["PEER_MODEL"])
        self.preprocess = json.loads((folder / "manifest.json").read_text())["preprocess"]
        options = onnxruntime.SessionOptions()
        # One thread a session and one process a core: faster than one session with all threads, as for latentd.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            folder / "model.onnx", options, providers=["CPUExecutionProvider"]
        )

    def pixels(self, data):
        """Bytes of a picture to uint8 [height, width, 3]."""
        want = self.preprocess
        image = Image.open(io.BytesIO(data))
        shortest = want.get("resize_shortest") or max(want["height"], want["width"])
        gap = want.get("decoding", {}).get("reducing_gap")
        if gap:
            # libjpeg's scaled decoding, as latentd's where the manifest allows it.
            image.draft("RGB", tuple(gap * shortest * side // min(image.size) for side in image.size))
        image = ImageOps.exif_transpose(image).convert("RGB")
        if want["policy"] != "shortest_edge_center_crop":
            raise SystemExit(f"no peer for the policy {want['policy']}")
        # As torchvision's Resize and CenterCrop: the longer side is truncated, the margins are rounded.
        size = [shortest * side // min(image.size) for side in image.size]
        image = image.resize(size, FILTERS[want["filter"]])
        left, top = round((size[0] - want["width"]) / 2), round((size[1] - want["height"]) / 2)
        return np.asarray(image.crop((left, top, left + want["width"], top + want["height"])))

    def embed(self, pictures):
        """Pictures' bytes to float32 [pictures, dim]."""
        batch = np.stack([self.pixels(data) for data in pictures])
        return self.session.run(None, {"image": batch})[0]
