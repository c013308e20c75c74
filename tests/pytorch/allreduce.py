"""One rank of an all-reduce over gloo, to be timed beside Tally's. Rank 0 prints one JSON object.

    python allreduce.py RANK RANKS MASTER_ADDRESS [FLOATS] [STEPS]     (GLOO_SOCKET_IFNAME names the link)
"""
import json, os, statistics, sys, time

import torch
import torch.distributed as dist

rank, ranks, master = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
floats = int(sys.argv[4]) if len(sys.argv) > 4 else 6_400_000
steps = int(sys.argv[5]) if len(sys.argv) > 5 else 20
os.environ.update(MASTER_ADDR=master, MASTER_PORT="29500")
torch.set_num_threads(1)
dist.init_process_group("gloo", rank=rank, world_size=ranks)
values = torch.rand(floats)
times, cpu = [], 0.0
for step in range(steps + 3):
    dist.barrier()
    began, used = time.perf_counter(), time.process_time()
    dist.all_reduce(values)
    if step >= 3:
        times.append(time.perf_counter() - began)
        cpu += time.process_time() - used
dist.barrier()
if rank == 0:
    median = round(1e3 * statistics.median(times), 1)
    print(json.dumps({"gloo": torch.__version__, "ranks": ranks, "floats": floats, "median_ms": median,
                      "cpu_ms": round(1e3 * cpu / steps, 1)}))
dist.destroy_process_group()
