#!/usr/bin/env python3
"""Times whole BYOL training steps in PyTorch, for comparison with `latentd-trainer bench`.

A step is what the trainer's is: both views through the online network (encoder, projector,
predictor) and the target network (no gradient, batch statistics), the symmetric loss, backward,
LARS with the paper's exclusions, the moving average of the target. The views are random numbers,
so that no picture is decoded. Each memory layout runs in a process of its own, which makes the
peak resident size that layout's.

    pip install torch numpy
    python3 pytorch_byol.py --arch resnet18 --width 0.25 --image-size 32 --batch 256 --steps 10

`--precision` chooses what the trainer's does: `medium` is autocast to bfloat16; `high` is TF32 on a
GPU (`--device cuda`), and f32 on a CPU, where PyTorch has nothing between f32 and bfloat16. On a GPU
cuDNN's benchmark mode is on, the views are uploaded from pinned memory while the step before runs,
and the loss is read once, at the end. `--compile` adds torch.compile.

Prints one JSON object, {"nchw": {"images_per_s", "peak_rss_mib", …}, "channels_last": {…}}.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
# DeepMind's batch norm keeps 0.9 of the running statistics at each step.
NORM_MOMENTUM = 0.1


def conv(cin, cout, kernel, stride):
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)


def norm(channels):
    return nn.BatchNorm2d(channels, momentum=NORM_MOMENTUM)


class Shortcut(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv, self.norm = conv(cin, cout, 1, stride), norm(cout)

    def forward(self, x):
        return self.norm(self.conv(x))


class Block(nn.Module):
    """A basic block (two 3×3) or a bottleneck (1×1, 3×3 with the stride, 1×1)."""

    def __init__(self, cin, mid, cout, stride, bottleneck):
        super().__init__()
        if bottleneck:
            shapes = [(cin, mid, 1, 1), (mid, mid, 3, stride), (mid, cout, 1, 1)]
        else:
            shapes = [(cin, mid, 3, stride), (mid, cout, 3, 1)]
        self.n = len(shapes)
        for i, shape in enumerate(shapes, 1):
            setattr(self, f"conv{i}", conv(*shape))
            setattr(self, f"norm{i}", norm(shape[1]))
        self.shortcut = Shortcut(cin, cout, stride) if stride != 1 or cin != cout else None

    def forward(self, x):
        y = x
        for i in range(1, self.n + 1):
            y = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(y))
            if i < self.n:
                y = F.relu(y, inplace=True)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class Encoder(nn.Module):
    """A ResNet whose modules bear the names of the trainer's weights."""

    def __init__(self, arch, width, image_size):
        super().__init__()
        channels = max(int(64 * width / 8 + 0.5), 1) * 8
        self.cifar = image_size <= 64
        self.stem = nn.Module()
        self.stem.conv = conv(3, channels, 3, 1) if self.cifar else conv(3, channels, 7, 2)
        self.stem.norm = norm(channels)
        bottleneck = arch == "resnet50"
        cin = channels
        for s, depth in enumerate(DEPTHS[arch]):
            stage = nn.Module()
            mid = channels << s
            cout = mid * (4 if bottleneck else 1)
            for b in range(depth):
                stride = 2 if b == 0 and s > 0 else 1
                stage.add_module(f"block{b}", Block(cin, mid, cout, stride, bottleneck))
                cin = cout
            self.add_module(f"stage{s + 1}", stage)
        self.dim = cin

    def forward(self, x):
        x = F.relu(self.stem.norm(self.stem.conv(x)), inplace=True)
        if not self.cifar:
            x = F.max_pool2d(x, 3, 2, 1)
        for s in range(1, 5):
            for block in getattr(self, f"stage{s}").children():
                x = block(x)
        return x.mean((2, 3))


class Mlp(nn.Module):
    """Projector and predictor; the second layer has no bias, as in DeepMind's code."""

    def __init__(self, cin, hidden, cout):
        super().__init__()
        self.linear1 = nn.Linear(cin, hidden)
        self.norm = nn.BatchNorm1d(hidden, momentum=NORM_MOMENTUM)
        self.linear2 = nn.Linear(hidden, cout, bias=False)

    def forward(self, x):
        return self.linear2(F.relu(self.norm(self.linear1(x)), inplace=True))


class Network(nn.Module):
    """Encoder and projector, with a predictor in the online network only."""

    def __init__(self, arch, width, image_size, hidden, projection, online):
        super().__init__()
        self.encoder = Encoder(arch, width, image_size)
        self.projector = Mlp(self.encoder.dim, hidden, projection)
        self.predictor = Mlp(projection, hidden, projection) if online else None

    def forward(self, x):
        projection = self.projector(self.encoder(x))
        return projection if self.predictor is None else self.predictor(projection)


def byol_loss(online, target, view1, view2):
    """The symmetric loss of Grill et al. 2020, eq. 2: the mean of 2 − 2 cos for both directions."""
    prediction1, prediction2 = online(view1), online(view2)
    with torch.no_grad():
        projection1, projection2 = target(view1), target(view2)

    def regression(x, y):
        return ((F.normalize(x, dim=1) - F.normalize(y, dim=1)) ** 2).sum(1)

    return (regression(prediction1, projection2) + regression(prediction2, projection1)).mean()


class Lars:
    """LARS as DeepMind's BYOL: momentum on the adapted gradient; biases and norms are neither
    adapted nor decayed."""

    def __init__(self, module, lr, weight_decay, momentum=0.9, eta=1e-3):
        self.lr, self.weight_decay, self.momentum, self.eta = lr, weight_decay, momentum, eta
        parameters = list(module.parameters())
        self.adapted = [p for p in parameters if p.ndim > 1]
        self.plain = [p for p in parameters if p.ndim <= 1]
        self.mu = [torch.zeros_like(p) for p in self.adapted + self.plain]

    @torch.no_grad()
    def step(self):
        gradients = list(
            torch._foreach_add([p.grad for p in self.adapted], self.adapted, alpha=self.weight_decay)
        )
        sizes = zip(torch._foreach_norm(self.adapted), torch._foreach_norm(gradients))
        trust = [self.eta * p / g if p > 0 and g > 0 else torch.ones(()) for p, g in sizes]
        torch._foreach_mul_(gradients, trust)
        torch._foreach_mul_(self.mu, self.momentum)
        torch._foreach_add_(self.mu, gradients + [p.grad for p in self.plain])
        torch._foreach_add_(self.adapted + self.plain, self.mu, alpha=-self.lr)


@torch.no_grad()
def update_target(online, target, tau):
    """The moving average over every trainable parameter that the target has."""
    names = dict(online.named_parameters())
    pairs = [(p, names[name]) for name, p in target.named_parameters()]
    torch._foreach_lerp_([p for p, _ in pairs], [q for _, q in pairs], 1 - tau)


def bench(args, layout):
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    cuda = device.type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = args.precision != "highest"
        torch.backends.cuda.matmul.allow_tf32 = args.precision != "highest"
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    shape = (args.arch, args.width, args.image_size, args.hidden, args.projection)
    online = Network(*shape, online=True).to(device, memory_format=memory_format)
    target = Network(*shape, online=False).to(device, memory_format=memory_format)
    size = (args.batch, 3, args.image_size, args.image_size)
    view1, view2 = (torch.randn(size).contiguous(memory_format=memory_format) for _ in range(2))
    if cuda:
        view1, view2 = view1.pin_memory(), view2.pin_memory()
    loss_of = torch.compile(byol_loss) if args.compile else byol_loss
    optimiser = Lars(online, lr=0.2 * args.batch / 256, weight_decay=1.5e-6)

    def step():
        online.zero_grad(set_to_none=True)
        views = [v.to(device, non_blocking=True) for v in (view1, view2)]
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "medium"):
            loss = loss_of(online, target, *views)
        loss.backward()
        optimiser.step()
        update_target(online, target, 0.996)
        return loss if cuda else loss.item()

    for _ in range(args.warmup):
        step()
    if cuda:
        torch.cuda.synchronize()
    times = []
    begin = time.perf_counter()
    for _ in range(args.steps):
        start = time.perf_counter()
        loss = step()
        times.append(time.perf_counter() - start)
    loss = float(loss)
    if cuda:
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - begin
    return {
        "images_per_s": args.batch * len(times) / elapsed,
        # A GPU runs behind: only all steps together have a time.
        "images_per_s_best": None if cuda else args.batch / min(times),
        "device_memory_mib": torch.cuda.max_memory_reserved() / 2**20 if cuda else None,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "loss": loss,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", choices=sorted(DEPTHS), default="resnet18")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--projection", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["highest", "high", "medium"], default="highest")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--layout", choices=["nchw", "channels_last", "both"], default="both")
    args = parser.parse_args()
    if args.layout != "both":
        print(json.dumps({args.layout: bench(args, args.layout)}))
        return
    merged = {}
    for layout in ("nchw", "channels_last"):
        command = [sys.executable, __file__, *sys.argv[1:], "--layout", layout]
        merged |= json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps(merged, indent=2))


if __name__ == "__main__":
    main()
