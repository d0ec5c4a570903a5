"""Runs an ONNX graph for the fake TensorRT of nvinfer.cpp, over standard input and output."""

import math
import sys

import numpy as np
import onnxruntime

TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool", "tensor(uint8)": "uint8"}


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    plan = source.read(int(source.readline()))
    session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()
    lines: list[object] = [len(inputs) + len(outputs)]
    for value in (*inputs, *outputs):
        lines += [
            value.name,
            "input" if value in inputs else "output",
            TYPES[value.type],
            len(value.shape),
            *value.shape,
        ]
    sink.write("".join(f"{line}\n" for line in lines).encode())
    sink.flush()
    while source.readline():  # a name; inputs come in the session's order
        feed = {}
        for index, value in enumerate(inputs):
            if index:
                source.readline()
            shape = [int(source.readline()) for _ in value.shape]
            dtype = np.dtype(TYPES[value.type])
            feed[value.name] = np.frombuffer(source.read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
        for array in session.run(None, feed):
            sink.write(np.ascontiguousarray(array).tobytes())
        sink.flush()


if __name__ == "__main__":
    main()
