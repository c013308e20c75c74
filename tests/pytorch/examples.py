"""The networks of examples/fashion and examples/characters in PyTorch, with the same recipe, to compare accuracy, time and
memory.

    pip install torch numpy
    python3 tests/pytorch/examples.py fashion --epochs 3 --seed 1
    python3 tests/pytorch/examples.py characters --steps 30
"""

import argparse
import gzip
import math
import pathlib
import resource
import statistics
import time

import numpy
import torch
from torch import nn
from torch.nn import functional

PICTURES = pathlib.Path("/usr/share/datasets/fashion-mnist")


class Fashion(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width, eps=1e-5)
        self.conv2, self.norm2 = nn.Conv2d(width, 2 * width, 3), nn.BatchNorm2d(2 * width, eps=1e-5)
        self.hidden, self.output = nn.Linear(2 * width * 5 * 5, 128), nn.Linear(128, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.norm1(self.conv1(x))), 2)
        x = functional.max_pool2d(functional.relu(self.norm2(self.conv2(x))), 2)
        x = functional.dropout(functional.relu(self.hidden(x.flatten(1))), 0.3, self.training)
        return self.output(x)


class Characters(nn.Module):
    def __init__(self, letters=128, width=64, context=128, layers=2):
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, 0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers)
        self.output = nn.Linear(width, letters)

    def forward(self, x):
        length = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.letters(x) + self.places(torch.arange(length))
        return self.output(self.encoder(x, mask=mask, is_causal=True))


def optimizer(model, rate, decay, betas):
    """AdamW with Burn's epsilon, without decay on vectors."""
    groups = [[p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() < 2]]
    groups = [{"params": groups[0], "weight_decay": decay}, {"params": groups[1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=1e-5)


def pictures(half):
    images = gzip.open(PICTURES / f"{half}-images-idx3-ubyte.gz").read()[16:]
    labels = gzip.open(PICTURES / f"{half}-labels-idx1-ubyte.gz").read()[8:]
    images = numpy.frombuffer(images, numpy.uint8).reshape(-1, 1, 28, 28).astype(numpy.float32)
    labels = numpy.frombuffer(labels, numpy.uint8).astype(numpy.int64)
    return torch.from_numpy((images / 255 - 0.286) / 0.353), torch.from_numpy(labels)


def fashion(args):
    torch.manual_seed(args.seed)
    (x, y), (test_x, test_y) = pictures("train"), pictures("t10k")
    model, batch = Fashion(), 128
    steps = args.epochs * math.ceil(len(x) / batch)
    adamw = optimizer(model, 2e-3, 0.05, (0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, lambda s: 0.5 * (1 + math.cos(math.pi * s / steps)))
    begun = time.perf_counter()
    for _ in range(args.epochs):
        model.train()
        for ids in torch.randperm(len(x)).split(batch):
            images = x[ids]
            flipped = torch.rand(len(ids)) < 0.5
            images[flipped] = images[flipped].flip(-1)
            adamw.zero_grad()
            functional.cross_entropy(model(images), y[ids]).backward()
            adamw.step()
            schedule.step()
    seconds = time.perf_counter() - begun
    model.eval()
    with torch.no_grad():
        right = sum((model(a).argmax(1) == b).sum().item() for a, b in zip(test_x.split(1000), test_y.split(1000)))
    print(f"fashion, {args.epochs} epochs, seed {args.seed}: {100 * right / len(test_y):.2f} %, {seconds:.0f} s")


def characters(args):
    torch.manual_seed(args.seed)
    model = Characters()
    adamw = optimizer(model, 3e-3, 0.1, (0.9, 0.99))
    lines = torch.randint(97, 123, (args.steps, 16, 129))
    seconds = []
    for batch in lines:
        begun = time.perf_counter()
        adamw.zero_grad()
        output = model(batch[:, :-1])
        loss = functional.cross_entropy(output.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        loss.item()
        seconds.append(time.perf_counter() - begun)
    count = sum(p.numel() for p in model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"characters, {count} parameters: {1e3 * statistics.median(seconds[3:]):.1f} ms a step, {peak:.0f} MiB")


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("example", choices=["fashion", "characters"])
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--threads", type=int, default=1)
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)
{"fashion": fashion, "characters": characters}[arguments.example](arguments)
