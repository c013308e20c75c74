"""A checkpoint of Tally's in the original PyTorch network: loads it by the three lines of the README and answers test digits.

    python load_checkpoint.py CHECKPOINT_DIR IMAGES_DIR [--number 5]

IMAGES_DIR holds 28x28 PNGs, white on black. Prints a line of JSON each, with the keys of `worker predict --json`, to be
compared with it. Needs torch, safetensors, numpy and pillow.
"""
import argparse, json, pathlib

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file

from torch_peer import Net


def main():
    p = argparse.ArgumentParser()
    p.add_argument("checkpoint", type=pathlib.Path)
    p.add_argument("images", type=pathlib.Path)
    p.add_argument("--number", type=int, default=5)
    a = p.parse_args()
    net = Net()
    net.load_state_dict(load_file(a.checkpoint / "model.safetensors"), strict=True)
    net.eval()
    for path in sorted(a.images.glob("*.png")):
        pixels = numpy.asarray(Image.open(path).convert("L"), dtype=numpy.float32) / 255
        x = torch.from_numpy((pixels - 0.1307) / 0.3081).reshape(1, 1, 28, 28)
        with torch.no_grad():
            logits, total, difference = net(x, torch.tensor([[float(a.number)]]))
        probabilities = torch.softmax(logits.double(), 1)[0].tolist()
        digit = max(range(10), key=probabilities.__getitem__)
        print(json.dumps({
            "image": str(path), "number": a.number, "digit": digit, "confidence": probabilities[digit],
            "probabilities": probabilities, "sum": total.item(), "difference": difference.item(),
        }))


if __name__ == "__main__":
    main()
