#!/usr/bin/env python3
"""Writes byol_step.safetensors: three BYOL steps of a tiny network, computed by PyTorch in f64.

    pip install torch numpy safetensors
    python3 trainer/tests/reference/make_fixtures.py

The trainer's tests load it, take the same steps and compare. What is in the file:

- `view1`, `view2`: the batch, [8, 16, 16, 3], already normalised.
- `online/<name>`: every weight and running statistic before the first step, under the trainer's
  names and in its layout (convolutions [kh, kw, cin, cout], linear layers [in, out]). These and the
  views are BF16, so that the numbers are exact in f32 and the file is small.
  The target starts as the same arrays *reversed* (row-major), so it differs from the online
  network and needs no room; it has no predictor.
- `representation`: eval mode (running statistics), view1, online encoder: [8, D].
- `prediction1`, `projection2`: train mode, first step: online of view1, target of view2.
- `loss`: before each of the three steps; the third's shows the momentum.
- `grad/<name>`: sampled gradient of the first step's loss; `grad_norm/<name>`: its whole L2 norm.
- `after/<name>`, `target_after/<name>`: sampled weights after the first step.
- `stats/<name>`, `target_stats/<name>`: running statistics after the first step (view1, then view2,
  each with weight 0.1); `running_var` is the unbiased variance as PyTorch keeps it,
  `running_var_biased` the biased one, as Haiku does.

Sampled: of an array of n numbers, row-major, every s-th from the first, where s is 1 for n <= 1024,
else ceil(n / 1024), plus one if that is even (an even step would skip channels).
Hyper-parameters are in the file's metadata (`step`, JSON), larger than the paper's so that each shows.
A bias before a batch norm has no gradient: the trainer's must be near zero there, not equal.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "benches"))
from pytorch_byol import Lars, Network, byol_loss, update_target  # noqa: E402

SHAPE = dict(arch="resnet18", width=0.125, image_size=16, hidden=32, projection=16)
BATCH = 8
HYPER = dict(lr=0.5, weight_decay=0.01, momentum=0.9, eta=0.02, tau=0.9)
SAMPLES = 1024


def trainer_name(name):
    """PyTorch's name of an array to the trainer's: encoder weights bear no prefix."""
    return name.removeprefix("encoder.")


def to_trainer(array):
    """PyTorch's layout to the trainer's: OIHW to HWIO, [out, in] to [in, out]."""
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(axes) if axes else array)


def from_trainer(array):
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
    return np.ascontiguousarray(array.transpose(axes) if axes else array)


def sample(array):
    flat = to_trainer(array).ravel()
    step = math.ceil(flat.size / SAMPLES)
    return flat[:: step if step % 2 else step + 1].astype(np.float32)


def to_bf16(array):
    """Rounded to the nearest BF16, still as f64."""
    return torch.from_numpy(array).to(torch.bfloat16).to(torch.float64).numpy()


def initial(network, rng):
    """Weights as uneven as a trained network's, in the trainer's layout, exact in BF16."""
    arrays = {}
    for name, tensor in network.state_dict().items():
        shape = to_trainer(tensor.numpy()).shape
        if name.endswith("num_batches_tracked"):
            continue
        if "running_mean" in name or name.endswith("bias"):
            array = rng.uniform(-0.3, 0.3, shape)
        elif "running_var" in name or "norm" in name:
            array = rng.uniform(0.5, 1.5, shape)
        else:
            array = rng.normal(0, math.sqrt(2 / np.prod(shape[:-1])), shape)
        arrays[name] = to_bf16(array)
    return arrays


def load(network, arrays):
    state = network.state_dict()
    state |= {n: torch.from_numpy(from_trainer(a)) for n, a in arrays.items() if n in state}
    network.load_state_dict(state)


def arrays_of(named):
    return {trainer_name(n): t.detach().numpy() for n, t in named}


def biased_variance(network, arrays):
    """Running variances as Haiku keeps them: PyTorch's update with the biased variance."""
    found = {trainer_name(n): arrays[n].copy() for n in arrays if n.endswith("running_var")}

    def hook(name):
        def update(_, inputs, __):
            x = inputs[0].detach()
            axes = (0, 2, 3) if x.ndim == 4 else (0,)
            found[name] = 0.9 * found[name] + 0.1 * x.var(axes, unbiased=False).numpy()

        return update

    norms = ((n, m) for n, m in network.named_modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)))
    handles = [m.register_forward_hook(hook(f"{trainer_name(n)}.running_var")) for n, m in norms]
    return found, handles


def main():
    torch.set_default_dtype(torch.float64)
    rng = np.random.default_rng(20200613)
    online, target = Network(**SHAPE, online=True), Network(**SHAPE, online=False)
    start = initial(online, rng)
    start_target = {n: a.ravel()[::-1].reshape(a.shape).copy() for n, a in start.items()}
    start_target = {n: a for n, a in start_target.items() if n in target.state_dict()}
    load(online, start)
    load(target, start_target)
    size = (BATCH, SHAPE["image_size"], SHAPE["image_size"], 3)
    views = [to_bf16(rng.normal(0, 1, size)) for _ in range(2)]
    view1, view2 = (torch.from_numpy(v.transpose(0, 3, 1, 2).copy()) for v in views)

    out = {}
    with torch.no_grad():
        online.eval()
        out["representation"] = online.encoder(view1).numpy()
        online.train()
        # On copies, so that the running statistics stay as they are.
        copies = [Network(**SHAPE, online=o) for o in (True, False)]
        for copy, arrays in zip(copies, (start, start_target)):
            load(copy, arrays)
        out["prediction1"] = copies[0](view1).numpy()
        out["projection2"] = copies[1](view2).numpy()

    optimiser = Lars(online, HYPER["lr"], HYPER["weight_decay"], HYPER["momentum"], HYPER["eta"])
    hooks = [biased_variance(online, start), biased_variance(target, start_target)]
    losses = []
    for step in range(3):
        online.zero_grad()
        loss = byol_loss(online, target, view1, view2)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            for name, p in online.named_parameters():
                name, gradient = trainer_name(name), p.grad.numpy()
                out[f"grad/{name}"] = sample(gradient)
                out[f"grad_norm/{name}"] = np.array([np.linalg.norm(gradient)])
            for prefix, network, (biased, handles) in zip(("", "target_"), (online, target), hooks):
                for name, array in arrays_of(network.named_buffers()).items():
                    if "running" in name:
                        out[f"{prefix}stats/{name}"] = array.copy()
                for name, array in biased.items():
                    out[f"{prefix}stats/{name}_biased"] = array
                for handle in handles:
                    handle.remove()
        optimiser.step()
        update_target(online, target, HYPER["tau"])
        if step == 0:
            out |= {f"after/{n}": sample(a) for n, a in arrays_of(online.named_parameters()).items()}
            out |= {
                f"target_after/{n}": sample(a) for n, a in arrays_of(target.named_parameters()).items()
            }
    out["loss"] = np.array(losses)

    tensors = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in out.items()}
    exact = {"view1": views[0], "view2": views[1]}
    exact |= {f"online/{trainer_name(n)}": a for n, a in start.items()}
    write(HERE / "byol_step.safetensors", tensors, exact)
    print(f"loss {losses}, {len(tensors) + len(exact)} arrays")


def write(path, tensors, exact):
    tensors = {n: torch.from_numpy(a) for n, a in tensors.items()}
    tensors |= {n: torch.from_numpy(a.copy()).to(torch.bfloat16) for n, a in exact.items()}
    # One entry: with several, their order in the file would change from run to run.
    metadata = json.dumps(SHAPE | HYPER | {"batch": BATCH, "torch": torch.__version__})
    path.write_bytes(save(tensors, {"step": metadata}))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
