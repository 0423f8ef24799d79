"""torchvision's ResNets through `train --init` and `export`, beside themselves: run by hand.

    pip install torch torchvision safetensors onnxruntime pillow
    python3 trainer/tests/reference/torchvision_parity.py target/release/latentd-trainer PICTURES

PICTURES needs at least 8 pictures. For resnet18, resnet34 and resnet50 with random weights and random running statistics: the
file is written under torchvision's names, a run is started from it, its first checkpoint exported, and the graph's
embedding of a real picture compared with torchvision's.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy
import onnxruntime
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

SIZE = 96
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(arch: str) -> torch.nn.Module:
    torch.manual_seed(1)
    net = getattr(torchvision.models, arch)(weights=None)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return net.eval()


def cosine(trainer: str, pictures: pathlib.Path, arch: str) -> float:
    net = network(arch)
    picture = next(p for p in sorted(pictures.rglob("*")) if p.suffix in (".jpg", ".png"))
    pixels = numpy.asarray(Image.open(picture).convert("RGB").resize((SIZE, SIZE)))
    with tempfile.TemporaryDirectory() as folder:
        weights, run, models = f"{folder}/{arch}.safetensors", f"{folder}/run", f"{folder}/models"
        save_file({name: tensor.contiguous() for name, tensor in net.state_dict().items()}, weights)
        train = ["train", str(pictures), "--out", run, "--init", weights, "--arch", arch, "--width", "1"]
        train += ["--image-size", str(SIZE), "--epochs", "1", "--batch", "2", "--device", "cpu"]
        subprocess.run([trainer, *train, "--hidden", "64", "--projection", "32"], check=True)
        first = f"{run}/checkpoints/step-000000000.safetensors"
        export = ["export", first, "--no-whiten", "--name", "parity", "--models", models, "--no-weights"]
        subprocess.run([trainer, *export], check=True)
        session = onnxruntime.InferenceSession(f"{models}/parity-v1/model.onnx")
        found = session.run(None, {"image": pixels[None]})[0][0]
    net.fc = torch.nn.Identity()
    x = (torch.from_numpy(pixels.copy()).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        expected = net(x.permute(2, 0, 1)[None])[0].numpy()
    return float(found @ expected / numpy.linalg.norm(expected))


if __name__ == "__main__":
    for arch in sys.argv[3:] or ("resnet18", "resnet34", "resnet50"):
        found = cosine(sys.argv[1], pathlib.Path(sys.argv[2]), arch)
        print(f"{arch}: cosine {found:.7f}")
        assert found > 0.99999, arch
