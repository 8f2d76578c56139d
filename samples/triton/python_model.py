"""A model of Triton's python backend: a folder or an engine opened by doge-export, which streams its answers.

Inputs: text_input, and what may be left out: max_tokens, temperature, seed. Output: text_output, a piece for each
response. Written for Triton's interface, and not run in it: the test gives it that interface's names.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils

import doge_export


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args):
        """Open the folder that the parameters name."""
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        self._session = doge_export.load(parameters["folder"], precision=parameters.get("precision") or None)

    def execute(self, requests):
        """Answer each request through its sender, as a decoupled model does."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                text = self._value(request, "text_input").decode()
                names = {"max_tokens": "max_new_tokens", "temperature": "temperature", "seed": "seed"}
                given = {ours: self._value(request, name) for name, ours in names.items()}
                settings = {name: value for name, value in given.items() if value is not None}
                for piece in self._session.stream(text, **settings):
                    if request.is_cancelled():
                        break
                    output = pb_utils.Tensor("text_output", np.array([piece.encode()], dtype=np.object_))
                    sender.send(pb_utils.InferenceResponse([output]))
            except (doge_export.DogeExportError, UnicodeDecodeError) as error:
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _value(self, request, name):
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        value = tensor.as_numpy().reshape(-1)[0]
        return value.item() if isinstance(value, np.generic) else value

    def finalize(self):
        """Free the session."""
        self._session.close()
