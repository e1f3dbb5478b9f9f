"""Runtimes other than onnxruntime that profiles name, where this machine has them: OpenVINO from PyPI, onnxruntime-web
under node (found by node, e.g. with NODE_PATH)."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np

from xarch.contracts.bench import Call
from xarch.export.check import inspect_onnx


def runtime_of(profile: str, folder: Path, names: Sequence[str]) -> AbstractContextManager[Call | None]:
    """A call into the graphs of a folder by the profile's own runtime; None where it is onnxruntime, or missing."""
    if profile == "openvino":
        return _openvino(folder, names)
    return _web(folder, names) if profile == "web" and _has_web_runtime() else nullcontext()


@contextmanager
def _openvino(folder: Path, names: Sequence[str]) -> Iterator[Call | None]:
    try:
        import openvino
    except ImportError:
        yield None
        return
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = {name: core.compile_model(str(folder / f"{name}.onnx"), "CPU", exact) for name in names}
    outputs = {name: list(inspect_onnx(folder / f"{name}.onnx")["outputs"]) for name in names}

    def call(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled[graph](inputs)
        return {n: np.array(found[i]) for i, n in enumerate(outputs[graph])}

    yield call


def _has_web_runtime() -> bool:
    node, script = shutil.which("node"), "require.resolve('onnxruntime-web')"
    return node is not None and subprocess.run([node, "-e", script], capture_output=True, check=False).returncode == 0


WEB = """
const ort = require('onnxruntime-web'), fs = require('fs'), path = require('path');
ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';
const [folder, ...names] = process.argv.slice(1);
const arrays = {float32: Float32Array, int64: BigInt64Array, int8: Int8Array, float16: Uint16Array};
(async () => {
  const data = path.join(folder, 'student.onnx.data'), sessions = {};
  for (const name of names) {
    const options = {executionProviders: ['wasm']};
    if (fs.existsSync(data)) options.externalData = [{path: 'student.onnx.data', data: fs.readFileSync(data)}];
    sessions[name] = await ort.InferenceSession.create(fs.readFileSync(path.join(folder, name + '.onnx')), options);
  }
  for await (const line of require('readline').createInterface({input: process.stdin})) {
    const asked = JSON.parse(line), feeds = {}, answer = {};
    for (const [key, [dtype, shape, text]] of Object.entries(asked.inputs)) {
      const bytes = Buffer.from(text, 'base64');
      const own = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
      feeds[key] = new ort.Tensor(dtype, new arrays[dtype](own), shape);
    }
    for (const [key, t] of Object.entries(await sessions[asked.graph].run(feeds))) {
      const bytes = Buffer.from(t.data.buffer, t.data.byteOffset, t.data.byteLength);
      answer[key] = [t.type, t.dims, bytes.toString('base64')];
    }
    console.log(JSON.stringify(answer));
  }
})();
"""


@contextmanager
def _web(folder: Path, names: Sequence[str]) -> Iterator[Call]:
    command = ["node", "-e", WEB, str(folder), *names]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        asked, answered = process.stdin, process.stdout
        assert asked is not None
        assert answered is not None

        def call(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            told = {n: [str(v.dtype), v.shape, base64.b64encode(v.tobytes()).decode()] for n, v in inputs.items()}
            asked.write(json.dumps({"graph": graph, "inputs": told}) + "\n")
            asked.flush()
            found = json.loads(answered.readline())
            return {n: np.frombuffer(base64.b64decode(t), kind).reshape(size) for n, (kind, size, t) in found.items()}

        yield call
        asked.close()
