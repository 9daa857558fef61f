"""The sessions of the double; see __init__.py."""

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import axengine

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
}
_CARDS = {"board": 1, "card": 1, "cards": 2, "no-card": 0}


class SessionOptions:
    """Accepted and ignored, as by the runtime."""


class NodeArg:
    def __init__(self, name: str, dtype: Any, shape: Sequence[int]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape


class InferenceSession:
    def __init__(
        self,
        path_or_bytes: str,
        sess_options: SessionOptions | None = None,
        providers: Any = None,
        provider_options: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        self._provider, options = _chosen(providers, provider_options)
        if self._provider == "AXCLRTExecutionProvider":
            _find_card((options or {}).get("device_id", 0))
        if not isinstance(path_or_bytes, str):  # a Path has no .encode, which the runtime calls
            raise TypeError(f"Unable to load model from type '{type(path_or_bytes)}'")
        self._name = Path(path_or_bytes).stem
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1  # tests run beside each other
        try:
            self._session = onnxruntime.InferenceSession(
                path_or_bytes, settings, providers=["CPUExecutionProvider"]
            )
        except Exception:  # noqa: BLE001 - whatever it was, the runtime says no more than this
            raise RuntimeError("axclrtEngineLoadFromFile failed.") from None
        self._inputs = [_node(node) for node in self._session.get_inputs()]
        self._outputs = [_node(node) for node in self._session.get_outputs()]
        self._buffers = threading.Lock()

    def get_providers(self) -> str:
        return self._provider

    def get_inputs(self, shape_group: int = 0) -> list[NodeArg]:
        return self._inputs

    def get_outputs(self, shape_group: int = 0) -> list[NodeArg]:
        return self._outputs

    def run(
        self,
        output_names: list[str] | None,
        input_feed: dict[str, NDArray[Any]],
        run_options: object | None = None,
        shape_group: int = 0,
    ) -> list[NDArray[Any]]:
        missing = [node.name for node in self._inputs if node.name not in input_feed]
        if missing:
            raise ValueError(f"Required inputs ({missing}) are missing from input feed.")
        for name in output_names or ():
            if name not in [node.name for node in self._outputs]:
                raise ValueError(f"Output name '{name}' is not in model outputs name list.")
        if not self._buffers.acquire(blocking=False):
            raise RuntimeError("Two runs at a time would share one set of buffers.")
        try:
            return self._run(output_names, input_feed)
        finally:
            self._buffers.release()

    def _run(
        self, output_names: list[str] | None, feed: dict[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        buffers = {node.name: _copied(node, feed[node.name]) for node in self._inputs}
        fault = _fault(self._name)
        if fault == "raise":
            raise RuntimeError("axclrtEngineExecute failed 0x8006008a")
        while fault == "hang":
            time.sleep(1)
        answers = self._session.run(output_names, buffers)
        return [np.full_like(answer, np.nan) if fault == "nan" else answer for answer in answers]


def _chosen(
    providers: Any, provider_options: list[dict[str, Any]] | None
) -> tuple[str, dict[str, Any] | None]:
    """The provider and its options; the first available one of a list counts."""
    available = axengine.get_available_providers()
    first = provider_options[0] if provider_options else None
    if providers is None:
        return available[0], first
    wanted = [providers] if isinstance(providers, str) else providers
    for provider in wanted:
        if not isinstance(provider, str | tuple):
            raise TypeError(f"Invalid provider type: {type(provider)}. Must be str or tuple.")
        name, options = provider if isinstance(provider, tuple) else (provider, first)
        if name in available:
            return name, options
    raise ValueError(f"Selected provider(s): {wanted} is(are) not available.")


def _find_card(index: int) -> None:
    total = _CARDS[axengine.plugged_in()]
    if total == 0:
        raise RuntimeError("Get AXCL device failed 0x00000000, find total 0 device.")
    if index >= total:
        raise RuntimeError(f"Device index {index} is out of range, total {total} device.")


def _node(node: Any) -> NodeArg:
    return NodeArg(node.name, np.dtype(_DTYPES[node.type]), list(node.shape))


def _copied(node: NodeArg, array: NDArray[Any]) -> NDArray[Any]:
    """What arrives in the device's memory: the array's bytes as they lie, read in C order."""
    assert list(node.shape) == list(array.shape) and node.dtype == array.dtype, (
        f"model inputs({node.name}) expect shape {node.shape} and dtype {node.dtype}, "
        f"however gets input with shape {array.shape} and dtype {array.dtype}"
    )
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = np.ascontiguousarray(array)
    return np.frombuffer(array.tobytes(order="A"), dtype=array.dtype).reshape(array.shape)


def _fault(name: str) -> str | None:
    path = os.environ.get("AXENGINE_DOUBLE_FAULTS")
    if not path or not os.path.exists(path):
        return None
    return dict(line.split() for line in Path(path).read_text().splitlines()).get(name)
