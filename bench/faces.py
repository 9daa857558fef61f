"""What a dialect costs on top of POST /jobs with Prefer: wait. Run by hand, on a quiet machine:

    .venv/bin/python bench/faces.py [--pairs 60] [--steps 2] [--side 128] [--model brittle]

Each pair asks for the same picture natively and through the face, in turns; the median of the
paired differences is what counts, so that a machine whose speed drifts does not decide. Few steps
keep the pictures' own noise small; what a face does is the same for any number of them. The native
answer holds no picture, the face's does: reading it is part of the price.
The tests' own brittle model draws
in no time, for a machine that is not quiet.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from tests.conftest import DOUBLES, Service  # noqa: E402

PROMPT = "a red circle on a blue background"


def bodies(model: str, steps: int, side: int) -> dict[str, dict[str, Any]]:
    """The same picture in every dialect."""
    size = {"width": side, "height": side}
    return {
        "/generate": {"prompt": PROMPT, "steps": steps, "seed": 1, **size},
        "/inference": {"prompt": PROMPT, "steps": steps, "seed": 1, **size},
        "/v1/images/generations": {
            "prompt": PROMPT, "num_inference_steps": steps, "seed": 1, "size": f"{side}x{side}"},
        "/sdapi/v1/txt2img": {"prompt": PROMPT, "steps": steps, "seed": 1, **size},
        f"/hf/{model}": {
            "inputs": PROMPT, "parameters": {"num_inference_steps": steps, "seed": 1, **size}},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="easel-bench-"))
    service = Service(
        folder, {"LOG_LEVEL": "WARNING", "MODEL": arguments.model, "MODELS_PATH": str(DOUBLES)}
    ).ready()
    size = {"width": arguments.side, "height": arguments.side}
    native = {"prompt": PROMPT, "steps": arguments.steps, "seed": 1, **size}

    process = psutil.Process(service.process.pid)

    def timed(path: str, body: dict[str, Any]) -> float:
        began = time.perf_counter()
        answer = service.client.post(path, json=body, headers={"Prefer": "wait=60"})
        took = (time.perf_counter() - began) * 1000
        assert answer.status_code == 200, answer.text
        return took

    def processor_time(path: str, body: dict[str, Any], calls: int) -> float:
        """Milliseconds of the service's own process (not its worker's) that a call takes."""
        before = process.cpu_times()
        for _ in range(calls):
            timed(path, body)
        after = process.cpu_times()
        return (after.user + after.system - before.user - before.system) * 1000 / calls

    try:
        for path, body in bodies(arguments.model, arguments.steps, arguments.side).items():
            for _ in range(5):
                timed("/jobs", native), timed(path, body)
            pairs: list[tuple[float, float]] = []
            for n in range(arguments.pairs):
                if n % 2:
                    face, plain = timed(path, body), timed("/jobs", native)
                else:
                    plain, face = timed("/jobs", native), timed(path, body)
                pairs.append((plain, face))
            difference = statistics.median(face - plain for plain, face in pairs)
            plain = statistics.median(plain for plain, _ in pairs)
            own = processor_time(path, body, 60) - processor_time("/jobs", native, 60)
            print(
                f"{path:24} {difference:+6.2f} ms over {plain:6.1f} ms, {len(pairs)} pairs; "
                f"{own:+5.2f} ms of processor time"
            )
        service.stop()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
