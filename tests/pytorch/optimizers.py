"""Writes coordinator/core/tests/optimizers.json: what PyTorch's optimizers make of 50 gradients, to hold Tally's to.

    pip install torch lion-pytorch
    python3 tests/pytorch/optimizers.py > coordinator/core/tests/optimizers.json

Each case is trained in double and in single precision. The double result is the reference, and the distance of the single
one from it is what rounding costs there.
"""

import json
import math

import torch
from lion_pytorch import Lion

STEPS, ELEMENTS, FIRST = 50, 12, 8

# Two tensors: the first 8 elements and the last 4. Gradients of all sizes, and zeros; float32 numbers.
generator = torch.Generator().manual_seed(5)
start = torch.randn(ELEMENTS, generator=generator)
gradients = torch.randn(STEPS, ELEMENTS, generator=generator) * torch.logspace(-4, 1, ELEMENTS)
gradients[:, 3] = 0.0
gradients[10:20, 7] *= 100.0

SGD, ADAM, ADAMW, RMS = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop

# Tally's settings, PyTorch's optimizer, PyTorch's settings; then settings of the second tensor, and clipping.
CASES = {
    "sgd": ({"algorithm": "sgd", "learning_rate": 0.05, "momentum": 0.0}, SGD, {"lr": 0.05}),
    "sgd with momentum": (
        {"algorithm": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        SGD,
        {"lr": 0.05, "momentum": 0.9},
    ),
    "sgd with dampening": (
        {"algorithm": "sgd", "learning_rate": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02},
        SGD,
        {"lr": 0.05, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.02},
    ),
    "sgd with nesterov": (
        {"algorithm": "sgd", "learning_rate": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
        SGD,
        {"lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02},
    ),
    "sgd that maximizes": (
        {"algorithm": "sgd", "learning_rate": 0.05, "momentum": 0.5, "maximize": True},
        SGD,
        {"lr": 0.05, "momentum": 0.5, "maximize": True},
    ),
    "adam": (
        {"algorithm": "adam", "learning_rate": 0.01, "betas": [0.9, 0.999], "epsilon": 1e-8},
        ADAM,
        {"lr": 0.01},
    ),
    "adam with other settings": (
        {"algorithm": "adam", "learning_rate": 0.03, "betas": [0.8, 0.95], "epsilon": 1e-4, "weight_decay": 0.02},
        ADAM,
        {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.02},
    ),
    "amsgrad": (
        {"algorithm": "adam", "learning_rate": 0.03, "betas": [0.7, 0.9], "epsilon": 1e-6, "amsgrad": True},
        ADAM,
        {"lr": 0.03, "betas": (0.7, 0.9), "eps": 1e-6, "amsgrad": True},
    ),
    "adamw": (
        {"algorithm": "adamw", "learning_rate": 0.01, "betas": [0.9, 0.999], "epsilon": 1e-8, "weight_decay": 0.01},
        ADAMW,
        {"lr": 0.01},
    ),
    "adamw with other settings": (
        {
            "algorithm": "adamw",
            "learning_rate": 0.03,
            "betas": [0.8, 0.95],
            "epsilon": 1e-4,
            "weight_decay": 0.3,
            "amsgrad": True,
            "maximize": True,
        },
        ADAMW,
        {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3, "amsgrad": True, "maximize": True},
    ),
    "rmsprop": (
        {"algorithm": "rmsprop", "learning_rate": 0.01, "alpha": 0.99, "epsilon": 1e-8},
        RMS,
        {"lr": 0.01},
    ),
    "rmsprop with momentum": (
        {
            "algorithm": "rmsprop",
            "learning_rate": 0.01,
            "alpha": 0.9,
            "epsilon": 1e-4,
            "momentum": 0.5,
            "weight_decay": 0.02,
        },
        RMS,
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "weight_decay": 0.02},
    ),
    "centered rmsprop": (
        {"algorithm": "rmsprop", "learning_rate": 0.01, "alpha": 0.8, "epsilon": 1e-4, "centered": True},
        RMS,
        {"lr": 0.01, "alpha": 0.8, "eps": 1e-4, "centered": True},
    ),
    "centered rmsprop with momentum": (
        {
            "algorithm": "rmsprop",
            "learning_rate": 0.01,
            "alpha": 0.8,
            "epsilon": 1e-4,
            "centered": True,
            "momentum": 0.9,
        },
        RMS,
        {"lr": 0.01, "alpha": 0.8, "eps": 1e-4, "centered": True, "momentum": 0.9},
    ),
    "lion": (
        {"algorithm": "lion", "learning_rate": 0.01, "betas": [0.9, 0.99]},
        Lion,
        {"lr": 0.01, "betas": (0.9, 0.99)},
    ),
    "lion with other settings": (
        {"algorithm": "lion", "learning_rate": 0.02, "betas": [0.8, 0.95], "weight_decay": 0.2},
        Lion,
        {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.2},
    ),
    "adamw in two groups": (
        {
            "algorithm": "adamw",
            "learning_rate": 0.03,
            "betas": [0.9, 0.99],
            "epsilon": 1e-6,
            "weight_decay": 0.1,
            "groups": [{"rate_factor": 0.5, "weight_decay": 0.0}],
        },
        ADAMW,
        {"lr": 0.03, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1},
        {"lr": 0.015, "weight_decay": 0.0},
    ),
    "sgd with a clipped norm": (
        {"algorithm": "sgd", "learning_rate": 0.05, "momentum": 0.9, "clip_norm": 2.0},
        SGD,
        {"lr": 0.05, "momentum": 0.9},
    ),
    "adam with clipped values": (
        {"algorithm": "adam", "learning_rate": 0.01, "betas": [0.9, 0.99], "epsilon": 1e-8, "clip_value": 0.5},
        ADAM,
        {"lr": 0.01, "betas": (0.9, 0.99)},
    ),
}


def train(settings, optimizer, options, second, dtype):
    """The parameters after the last step, as doubles."""
    tensors = [t.to(dtype).clone().requires_grad_() for t in (start[:FIRST], start[FIRST:])]
    groups = [{"params": tensors[:1]}, {"params": tensors[1:], **second}]
    optimizer = optimizer(groups, **options)
    for gradient in gradients:
        for tensor, part in zip(tensors, (gradient[:FIRST], gradient[FIRST:])):
            tensor.grad = part.to(dtype).clone()
        if "clip_norm" in settings:
            torch.nn.utils.clip_grad_norm_(tensors, settings["clip_norm"])
        if "clip_value" in settings:
            torch.nn.utils.clip_grad_value_(tensors, settings["clip_value"])
        optimizer.step()
    return torch.cat([tensor.detach().double() for tensor in tensors])


def case(settings, optimizer, options, second=None):
    double, single = (train(settings, optimizer, options, second or {}, d) for d in (torch.float64, torch.float32))
    spread = (double - single).abs().max().item()
    assert math.isfinite(spread)
    return {"settings": settings, "parameters": double.tolist(), "spread": spread}


def lines(values):
    """A list with a line for each of its parts."""
    return "[\n" + ",\n".join(json.dumps(value) for value in values) + "\n]"


cases = ",\n".join(f"{json.dumps(name)}: {json.dumps(case(*parts))}" for name, parts in CASES.items())
print(f'''{{
"torch": {json.dumps(torch.__version__)},
"first_tensor": {FIRST},
"start": {json.dumps(start.tolist())},
"gradients": {lines(gradients.tolist())},
"cases": {{
{cases}
}}
}}''')
