"""What the service costs on top of the runtime. Run by hand, on a quiet machine:

    .venv/bin/python bench/spine.py [--pairs 100] [--jobs 200]

Every ratio is of paired runs: the same call on the runtime in this process and through the
service, in turn, so that a machine whose speed drifts does not decide. docs/performance.md quotes
the results.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
import psutil

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from app.models.catalog import Catalog  # noqa: E402
from app.request import ImageRequest  # noqa: E402
from app.runtime import Inputs, load  # noqa: E402
from app.runtime.main import NICENESS  # noqa: E402
from tests.conftest import Service  # noqa: E402

PROMPT = "a red circle on a blue background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=200)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="easel-bench-"))
    try:
        start(folder)
        service = Service(folder, {"LOG_LEVEL": "WARNING", "QUEUE_LIMIT": "1000"}).ready()
        direct = direct_call()
        overhead(service, direct, arguments.pairs)
        throughput(service, direct, arguments.jobs)
        health(service)
        cancel(service)
        service.stop()
    finally:
        shutil.rmtree(folder)


def direct_call() -> Callable[[int], None]:
    """The same picture made in this process, by the pipeline alone, at a worker's niceness."""
    os.nice(NICENESS)
    model = Catalog([HOME], HOME / "data" / "models").get("demo")
    pipeline = load(model)
    recipe, _ = model.complete(ImageRequest(prompt=PROMPT))

    def on_step(step: int, steps: int, preview: object = None) -> None:
        pass

    def call(seed: int) -> None:
        pipeline.generate(recipe, seed, Inputs(), on_step)

    for seed in range(3):
        call(seed)
    return call


def start(folder: Path) -> None:
    """From the start of the process to /health and to the first picture, twice: cold and warm
    cache."""
    for cache in ("empty", "warm"):
        began = time.perf_counter()
        service = Service(folder, {"LOG_LEVEL": "WARNING"})
        up = time.perf_counter() - began
        service.generate(PROMPT)
        first = time.perf_counter() - began
        memory = psutil.Process(service.process.pid).memory_info().rss / 2**20
        print(f"start, compile cache {cache}: /health {up:.2f} s, first picture {first:.2f} s")
        print(f"  API process {memory:.0f} MB")
        service.stop()


def overhead(service: Service, direct: Callable[[int], None], pairs: int) -> None:
    differences: list[float] = []
    calls: list[float] = []
    for seed in range(pairs):
        alone = timed(lambda seed=seed: direct(seed))
        served = timed(lambda seed=seed: service.generate(PROMPT, seed=seed))
        calls.append(alone)
        differences.append(served - alone)
    print(f"request to picture: direct p50 {ms(statistics.median(calls))}, ", end="")
    print(f"served minus direct p50 {ms(statistics.median(differences))} ({pairs} pairs)")


def throughput(service: Service, direct: Callable[[int], None], jobs: int) -> None:
    """Jobs in queues of twenty against as many direct calls, in turn. Short ones would measure
    their ends: the last picture's encoding and record have no next one to go on beside."""
    block = 20
    ratios: list[float] = []
    total = [0.0, 0.0]
    for n in range(jobs // block):
        seeds = range(n * block, (n + 1) * block)
        served = queue(service, list(seeds)) if n % 2 else 0.0  # each goes first every second time
        alone = timed(lambda seeds=seeds: [direct(seed) for seed in seeds])
        served = served or queue(service, list(seeds))
        total[0] += alone
        total[1] += served
        ratios.append(alone / served)
    print(f"throughput of {jobs} jobs: {total[0] / total[1]:.1%} of direct calls, ", end="")
    print(f"median of {len(ratios)} pairs {statistics.median(ratios):.1%}")


def queue(service: Service, seeds: list[int]) -> float:
    """Seconds from the start of the first of these jobs to the end of the last, as recorded. They
    are handed in while another one runs, so that handing them in is not what is measured."""
    service.submit(PROMPT, steps=50)
    ids = [service.submit(PROMPT, seed=seed) for seed in seeds]
    with service.client.stream("GET", f"/jobs/{ids[-1]}/events") as events:
        for _ in events.iter_lines():
            pass
    first, last = (service.job(ids[n]) for n in (0, -1))
    times = [
        datetime.fromisoformat(job[key]) for job, key in ((first, "started"), (last, "finished"))
    ]
    return (times[1] - times[0]).total_seconds()


def health(service: Service) -> None:
    """/health while eight clients keep the queue full."""
    stop = threading.Event()

    def load() -> None:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            while not stop.is_set():
                client.post("/jobs", json={"prompt": PROMPT}, headers={"Prefer": "wait=60"})

    clients = [threading.Thread(target=load) for _ in range(8)]
    for client in clients:
        client.start()
    times = []
    for _ in range(500):
        times.append(timed(lambda: service.client.get("/health")))
        time.sleep(0.01)
    stop.set()
    for client in clients:
        client.join()
    times.sort()
    print(f"/health under load: p50 {ms(times[250])}, p99 {ms(times[494])}")


def cancel(service: Service) -> None:
    """From DELETE to the final state, and until the device takes the next job."""
    ends: list[float] = []
    frees: list[float] = []
    step = service.generate(PROMPT, steps=100)["timings_ms"]["denoise"] / 100 / 1000
    for _ in range(10):
        job = service.submit(PROMPT, steps=150)
        service.wait_for(lambda job=job: service.job(job)["progress"]["step"] > 3)
        began = time.perf_counter()
        service.client.delete(f"/jobs/{job}")
        service.ended(job)
        ends.append(time.perf_counter() - began)
        following = service.submit(PROMPT, steps=1)
        service.wait_for(lambda job=following: service.job(job)["started"] is not None)
        frees.append(time.perf_counter() - began)
    print(
        f"cancel: one step {ms(step)}, to the final state p50 {ms(statistics.median(ends))}, ",
        end="",
    )
    print(f"to the next job's start p50 {ms(statistics.median(frees))}")


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


if __name__ == "__main__":
    main()
