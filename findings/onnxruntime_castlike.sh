#!/usr/bin/env bash
# onnxruntime 1.32.0 does not fold a constant that goes through CastLike before it lays out the weights of a convolution.
#
# Seen:     a convolution's weight is a stored tensor times a stored number. With Cast on the number, the optimised model holds the
#           product, and a convolution in the blocked layout of the processor. With CastLike on it, to the type of another stored
#           tensor, the product is still computed, in each run, and the convolution is the plain one.
# Expected: the same, since all that goes in is constant. torch.onnx.export writes CastLike for numbers that multiply tensors, so a
#           network whose layers scale their weights, as StyleGAN2's, is slower for it: 174 and 150 ms for one of ours.
# Ours:     sgpn_model/restore/exporter.py replaces CastLike; test_exporter.py looks at what the engine makes of the files.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==1.32.0" "onnx==1.23.2" "numpy<3"
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

folder = Path(sys.argv[1])
weight = np.random.default_rng(0).normal(size=(32, 32, 3, 3)).astype(np.float32)


def optimised(cast: onnx.NodeProto) -> tuple[list[str], np.ndarray]:
    """The operations that onnxruntime runs, and what comes out."""
    nodes = [
        cast,
        helper.make_node("Mul", ["weight", "scale"], ["scaled"]),
        helper.make_node("Conv", ["x", "scaled"], ["y"], pads=[1, 1, 1, 1]),
    ]
    stored = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(0.5), "number")]
    sizes = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32, 16, 16]) for name in "xy"}
    graph = helper.make_graph(nodes, "g", [sizes["x"]], [sizes["y"]], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimised.onnx"), 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.ones((1, 32, 16, 16), np.float32)
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node], session.run(None, {"x": x})[0]


plain, one = optimised(helper.make_node("Cast", ["number"], ["scale"], to=TensorProto.FLOAT))
like, two = optimised(helper.make_node("CastLike", ["number", "weight"], ["scale"]))
print(f"onnxruntime {onnxruntime.__version__}")
print("Cast:    ", *plain)
print("CastLike:", *like)
assert np.allclose(one, two, atol=1e-4)
sys.exit(0 if "Mul" not in plain and "Mul" in like else "onnxruntime behaves otherwise now")
PYTHON
echo "as found: the weights are multiplied in each run"
