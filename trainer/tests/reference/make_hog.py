"""Writes hog.safetensors: pictures of examples/ and their HOG features by scikit-image.

Run with numpy, Pillow, scikit-image and safetensors installed: python3 make_hog.py
"""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from skimage.feature import hog

HERE = Path(__file__).parent
NAMES = ["dress-1", "hat-1", "outwear-1", "shoes-1"]

tensors = {}
for side in (32, 64):
    pictures = [Image.open(HERE / f"../../../examples/{name}.jpg").convert("RGB") for name in NAMES]
    pixels = np.stack([np.asarray(p.resize((side, side), Image.BOX)) for p in pictures])
    features = [hog(p, 9, (8, 8), (2, 2), block_norm="L2-Hys", channel_axis=-1) for p in pixels]
    tensors[f"pixels.{side}"] = pixels
    tensors[f"hog.{side}"] = np.stack(features).astype(np.float32)
save_file(tensors, HERE / "hog.safetensors")
