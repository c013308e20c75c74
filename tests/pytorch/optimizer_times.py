"""Times PyTorch's fused optimizers beside `cargo bench -p tally-numerics -- update`: one thread, 6 402 764 elements.

    pip install torch
    python3 tests/pytorch/optimizer_times.py
"""

import statistics
import time

import torch

ELEMENTS, ROUNDS = 6_402_764, 30

torch.set_num_threads(1)
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-6, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-6, fused=True),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=1e-6, amsgrad=True, fused=True),
    "RMSProp": lambda p: torch.optim.RMSprop(p, lr=1e-6),
    "centered RMSProp with momentum": lambda p: torch.optim.RMSprop(p, lr=1e-6, centered=True, momentum=0.9),
}

for name, make in OPTIMIZERS.items():
    parameter = torch.randn(ELEMENTS, requires_grad=True)
    parameter.grad = torch.randn(ELEMENTS)
    optimizer = make([parameter])
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    median = statistics.median(seconds[3:])
    print(f"{name:32} {1e3 * median:6.2f} ms  {1e9 * median / ELEMENTS:5.2f} ns an element")
