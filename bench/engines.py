"""Inference engines that read ONNX: onnxruntime and OpenVINO, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, from_numpy

from .passes import CHECKED_CALLS
from .problem import Problem, Tensors

OPSET, IR_VERSION = 17, 8  # old enough for every release of the last years
Arrays = dict[str, np.ndarray]
Infer = Callable[[Arrays], Arrays]


def reordered(parameter: Tensor) -> np.ndarray:
    """Rows of the gates i, f, g, o in ONNX's order, which is i, o, f, g."""
    i, f, g, o = parameter.numpy().reshape(4, -1, *parameter.shape[1:])
    return np.concatenate([i, o, f, g])


def layer_weights(problem: Problem, prefix: str, layer: int) -> dict[str, np.ndarray]:
    """W [D, 4H, I], R [D, 4H, H] and B [D, 8H] of one layer."""
    suffixes = [f"_l{layer}", f"_l{layer}_reverse"][: problem.workload.directions]

    def gates(name: str, suffix: str) -> np.ndarray:
        return reordered(problem.parameters[f"{prefix}{name}{suffix}"])

    return {
        "W": np.stack([gates("weight_ih", s) for s in suffixes]),
        "R": np.stack([gates("weight_hh", s) for s in suffixes]),
        "B": np.stack([np.r_[gates("bias_ih", s), gates("bias_hh", s)] for s in suffixes]),
    }


def places(problem: Problem) -> Iterator[tuple[str, int]]:
    for i in range(len(problem.workload.hidden)):
        for layer in range(problem.workload.layers):
            yield f"lstms.{i}.", layer


def onnx_model(problem: Problem) -> bytes:
    """The problem's layers: x, h0_k, c0_k -> y, h_k, c_k for every layer k."""
    workload = problem.workload
    directions = "bidirectional" if workload.bidirectional else "forward"
    values, nodes, states, new_states = [], [], [], []
    x = "x"
    for k, ((prefix, layer), size) in enumerate(
        zip(places(problem), workload.layer_sizes(), strict=True)
    ):
        for name, array in layer_weights(problem, prefix, layer).items():
            values.append(numpy_helper.from_array(array, f"{name}_{k}"))
        shape = [workload.directions, workload.batch, size.hidden]
        for old, new in ((f"h0_{k}", f"h_{k}"), (f"c0_{k}", f"c_{k}")):
            states.append(helper.make_tensor_value_info(old, TensorProto.FLOAT, shape))
            new_states.append(helper.make_tensor_value_info(new, TensorProto.FLOAT, shape))
        inputs = [x, f"W_{k}", f"R_{k}", f"B_{k}", "", f"h0_{k}", f"c0_{k}"]
        settings = {"hidden_size": size.hidden, "direction": directions}
        nodes.append(
            helper.make_node("LSTM", inputs, [f"y_{k}", f"h_{k}", f"c_{k}"], **settings)
        )  # y_k [T, D, B, H]
        nodes.append(helper.make_node("Transpose", [f"y_{k}"], [f"t_{k}"], perm=[0, 2, 1, 3]))
        values.append(numpy_helper.from_array(np.array([0, 0, -1]), f"shape_{k}"))
        nodes.append(helper.make_node("Reshape", [f"t_{k}", f"shape_{k}"], [f"out_{k}"]))
        x = f"out_{k}"
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    extent = [workload.steps, workload.batch]
    features = size.output * workload.directions
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "lstm",
        [value("x", TensorProto.FLOAT, [*extent, workload.input]), *states],
        [value("y", TensorProto.FLOAT, [*extent, features]), *new_states],
        values,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model.SerializeToString()


def output_names(problem: Problem) -> list[str]:
    """Of `onnx_model`, in its order."""
    layers = range(len(list(problem.workload.layer_sizes())))
    return ["y", *(f"{name}_{k}" for k in layers for name in "hc")]


def initial_states(problem: Problem) -> Arrays:
    workload = problem.workload
    states = {}
    for k, size in enumerate(workload.layer_sizes()):
        shape = (workload.directions, workload.batch, size.hidden)
        states |= {name: np.zeros(shape, np.float32) for name in (f"h0_{k}", f"c0_{k}")}
    return states


def named(problem: Problem, outputs: Arrays) -> Tensors:
    """As nn.LSTM has them: one state for all layers of an LSTM."""
    names = {"y": ["y"]}
    for k, (prefix, _) in enumerate(places(problem)):
        i = prefix.split(".")[1]
        for name in "hc":
            names.setdefault(f"{name}_n of {i}", []).append(f"{name}_{k}")
    return {
        name: from_numpy(np.concatenate([outputs[each] for each in parts]))
        for name, parts in names.items()
    }


def prepare(problem: Problem, infer: Infer) -> tuple[Callable[[], object], Callable[[], Tensors]]:
    """What is timed, and what is checked."""
    x, zeros, calls = problem.x.numpy(), initial_states(problem), problem.workload.calls
    layers = len(zeros) // 2

    def run(count: int = calls) -> Arrays:
        outputs = infer({"x": x, **zeros})
        for _ in range(count - 1):
            states = {f"{n}0_{k}": outputs[f"{n}_{k}"] for k in range(layers) for n in "hc"}
            outputs = infer({"x": x, **states})
        return outputs

    def check() -> Tensors:
        return named(problem, run(min(calls, CHECKED_CALLS)))

    return run, check


def prepare_onnxruntime(problem: Problem) -> tuple[Callable, Callable]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = problem.threads
    session = onnxruntime.InferenceSession(
        onnx_model(problem), options, providers=["CPUExecutionProvider"]
    )
    names = output_names(problem)

    def infer(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return prepare(problem, infer)


def prepare_openvino(problem: Problem) -> tuple[Callable, Callable]:
    import openvino

    core = openvino.Core()
    # Where the processor has bfloat16, it would be used in place of float32.
    settings = {"INFERENCE_NUM_THREADS": problem.threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(onnx_model(problem)), "CPU", settings)
    request = compiled.create_infer_request()
    names = output_names(problem)

    def infer(inputs: Arrays) -> Arrays:
        outputs = request.infer(inputs, share_inputs=True)
        return {name: outputs[k] for k, name in enumerate(names)}

    return prepare(problem, infer)


PREPARE = {"onnxruntime": prepare_onnxruntime, "openvino": prepare_openvino}
