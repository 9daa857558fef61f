"""A test double of axengine, Axera's NPU runtime: the same interface, run by onnxruntime.

A file named *.axmodel is an ONNX graph here. The double is as strict as the runtime where a program
could go wrong unnoticed (names, shapes, dtypes, memory order, one run at a time), and it fails with
the same words. What is plugged in, and what goes wrong, is said by the environment:

AXENGINE_DOUBLE         board (the default), card, cards (two of them), no-card, no-driver
AXENGINE_DOUBLE_FAULTS  a file that is looked at before each run. While it exists, its line
                        `unet raise` makes runs of unet.axmodel fail, `unet hang` makes them never
                        end, `unet nan` makes them answer NaN.
"""

import os

PROVIDERS = ("AxEngineExecutionProvider", "AXCLRTExecutionProvider")
_AVAILABLE = {
    "board": ["AxEngineExecutionProvider"],
    "card": ["AXCLRTExecutionProvider"],
    "cards": ["AXCLRTExecutionProvider"],
    "no-card": ["AXCLRTExecutionProvider"],
    "no-driver": [],
}


def plugged_in() -> str:
    return os.environ.get("AXENGINE_DOUBLE", "board")


def get_all_providers() -> list[str]:
    return list(PROVIDERS)


def get_available_providers() -> list[str]:
    return list(_AVAILABLE[plugged_in()])


if not get_available_providers():
    raise ImportError(
        "No providers found. Please make sure you have installed one of the following: "
        f"{get_all_providers()}"
    )

print("[INFO] Available providers: ", get_available_providers())  # some versions do

from axengine.session import InferenceSession, NodeArg, SessionOptions  # noqa: E402 - as the runtime

__all__ = [
    "InferenceSession",
    "NodeArg",
    "SessionOptions",
    "get_all_providers",
    "get_available_providers",
]
