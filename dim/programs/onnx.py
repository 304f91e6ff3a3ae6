"""An ONNX file, for onnxruntime, browsers, mobile devices and other languages; it needs the extra `onnx`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dim.program import COUNT, INPUTS, OUTPUT, Program

__all__ = ["ONNX"]

# The operators that PyTorch's exporter is written in. Later ones are converted from these; onnxruntime runs them since 1.14.
_OPSET = 18


class ONNX(Program):
    """See `dim.program.Program`. What it says of itself is in its metadata: a JSON value for each key."""

    suffix = ".onnx"
    needs = ("onnx", "onnxscript", "onnxruntime")
    most_bytes = 2**31 - 2**24  # of a file of protobuf, less what a graph takes

    def write(self, path: Path, traced: torch.export.ExportedProgram, about: Mapping[str, Any]) -> None:
        shapes = ({0: COUNT}, None)  # only a name here, which the labels' axis has too, as it is the same
        names = {"input_names": list(INPUTS), "output_names": [OUTPUT]}
        made = torch.onnx.export(traced, dynamo=True, **names, dynamic_shapes=shapes, opset_version=_OPSET, verbose=False)
        model = made.model_proto
        graph = model.graph
        for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            del part.metadata_props[:]  # notes of the exporter about our code
        model.producer_name, model.producer_version = "dim-distill", about["provenance"]["exported_with"].get("dim-distill", "")
        model.doc_string = f"Images of {about['data']} by class; the metadata says how latents are drawn."
        values = {key: json.dumps(value, allow_nan=False) for key, value in about.items()}
        self.library("onnx").helper.set_model_props(model, values)
        path.write_bytes(model.SerializeToString())

    def read(self, path: Path) -> Callable[[Tensor, Tensor], Tensor]:
        runtime = self.library("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def run(latents: Tensor, labels: Tensor) -> Tensor:
            given = dict(zip(INPUTS, (latents.numpy(), labels.numpy()), strict=True))
            return torch.from_numpy(session.run([OUTPUT], given)[0])

        return run
