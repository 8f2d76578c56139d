"""What quantisation costs by position, each part of it alone: `python quantization_parts.py FOLDER --text stories.txt`.

FOLDER holds a text-generation export for onnxruntime or portable. Texts have as many tokens as it allows. Each part is
put into the float32 graph: weights in 8 (or --bits 4) bits, inputs of linear layers rounded to 8 bits, int8 caches,
weights of one layer; "all" has the first three. Each is run twice: as it is, and with the keys that the float32 graph
selects, so that the difference is what an exchange of near-equal keys costs. Weights are rounded to the nearest.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from doge_export import load
from doge_export.package.onnx_file import write_onnx
from doge_export.quantization.caches import cache_ranges
from doge_export.quantization.quality import measure
from doge_export.quantization.quantize_caches import QuantizeCaches
from doge_export.quantization.recipe import SMALLEST
from doge_export.quantization.rounding import nearest
from doge_export.quantization.texts import Texts, of_all_lengths, texts_for
from doge_export.quantization.weights import QuantizableWeight, quantizable_weights
from doge_export.quantization.whole import WholeTexts
from doge_export.targets.lowering import constant

BLOCK = 128
Part = Callable[[ir.Model], object]


def large(model: ir.Model) -> list[QuantizableWeight]:
    """Return the weights that int8 graphs store in blocks."""
    return [w for w in quantizable_weights(model.graph) if w.matrix().size >= SMALLEST and w.shape[1] % BLOCK == 0]


def round_weights(bits: int, part_of_name: str = "") -> Part:
    """Return a change that replaces weights with what their codes stand for."""

    def change(model: ir.Model) -> None:
        for weight in large(model):
            if part_of_name in weight.name:
                rounded = nearest(weight.matrix(), bits, BLOCK).dequantized().astype(np.float32)
                stored = rounded if weight.by_row else np.ascontiguousarray(rounded.T)
                weight.value.const_value = ir.tensor(stored, name=weight.name)

    return change


def round_activations(model: ir.Model) -> None:
    """Round the inputs of linear layers to 8 bits block by block, as MatMulNBits does at accuracy level 4."""
    rounded: dict[ir.Value, ir.Value] = {}
    for weight in large(model):
        for node in weight.products:
            source = node.inputs[0]
            if source not in rounded:
                tape = Tape()
                blocks = tape.op("Reshape", [source, constant(model.graph, np.array([0, 0, -1, BLOCK]))])
                last = constant(model.graph, np.array([-1]))
                largest = tape.op("ReduceMax", [tape.op("Abs", [blocks]), last], {"keepdims": 1})
                largest = tape.op("Max", [largest, constant(model.graph, np.array(1e-30, np.float32))])
                step = tape.op("Div", [largest, constant(model.graph, np.array(127, np.float32))])
                steps = tape.op("Mul", [tape.op("Round", [tape.op("Div", [blocks, step])]), step])
                whole = constant(model.graph, np.array([0, 0, weight.shape[1]]))
                rounded[source] = tape.op("Reshape", [steps, whole])
                producer = source.producer()
                model.graph.insert_after(producer, tape.nodes)
            node.replace_input_with(0, rounded[source])


def selection(model: ir.Model, *, given: bool) -> list[str]:
    """Let the graph return which keys each layer selects, or take them instead; return the names."""
    names = []
    for node in [node for node in model.graph if node.op_type == "TopK" and node.outputs[0].uses()]:
        best, indices = node.outputs
        users = [user for user, _ in indices.uses()]
        if not any(user.op_type == "ScatterElements" for user in users):
            continue  # a router's
        name = f"selected_{len(names)}"
        names.append(name)
        if not given:
            indices.name, indices.dtype, indices.shape = name, ir.DataType.INT64, ir.Shape([1, None, None, None])
            model.graph.outputs.append(indices)
            continue
        keys = ir.val(name, ir.DataType.INT64, [1, None, None, None])
        model.graph.inputs.append(keys)
        tape = Tape()
        scores = tape.op("GatherElements", [node.inputs[0], keys], {"axis": -1})
        model.graph.insert_after(node, tape.nodes)
        for old, new in ((best, scores), (indices, keys)):
            ir.convenience.replace_all_uses_with(old, new)
    return names


class Known:
    """Stands for a graph: returns what is known of each text, or is run with the keys of another."""

    def __init__(self, graph: WholeTexts, known: dict[bytes, dict[str, np.ndarray]]) -> None:
        self._graph, self._known = graph, known
        self.output = graph.output

    def run(self, ids: np.ndarray) -> list[np.ndarray]:
        """Return the logits."""
        known = self._known[ids.tobytes()]
        if self.output in known:
            return [known[self.output]]
        return self._graph.run(ids, None, known)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, help="by default the model writes it")
    parser.add_argument("--most", type=int, default=8, help="texts that are read")
    parser.add_argument("--bits", type=int, default=8, choices=(4, 8))
    arguments = parser.parse_args()
    session = load(arguments.folder, precision="fp32")
    texts = of_all_lengths(texts_for("evaluation", session, arguments.text), session.manifest)[-1]
    texts = Texts(texts.origin, texts.rows[: arguments.most])
    parts: dict[str, list[Part]] = {"weights": [round_weights(arguments.bits)], "activations": [round_activations]}
    if session.manifest.graphs["onnx/model.onnx"].interface == "in-place":
        calibration = texts_for("calibration", session)
        groups = of_all_lengths(calibration, session.manifest)
        rows = tuple(row for group in groups for row in group.rows)
        parts["cache"] = [QuantizeCaches(cache_ranges(session.decoder, Texts(calibration.origin, rows)))]
    parts["all"] = [change for changes in parts.values() for change in changes]
    for layer in range(int(session.manifest.architecture["num_hidden_layers"])):
        parts[f"weights of layer {layer}"] = [round_weights(arguments.bits, f"layers.{layer}.")]
    parts["embedding and head"] = [round_weights(arguments.bits, "embed_tokens")]
    with tempfile.TemporaryDirectory(prefix="doge-export-") as folder:
        compare(arguments.folder / "onnx/model.onnx", parts, texts, Path(folder))


def compare(file: Path, parts: dict[str, list[Part]], texts: Texts, folder: Path) -> None:
    """Print a row for each part, with its own selection and with that of the float32 graph."""

    def graph(changes: list[Part], *, given: bool) -> tuple[WholeTexts, list[str]]:
        model = ir.load(file)
        for change in changes:
            change(model)
        names = selection(model, given=given)
        write_onnx(model, folder / "changed.onnx")
        return WholeTexts(folder / "changed.onnx"), names

    reference, names = graph([], given=False)
    kept, logits = {}, {}
    for ids in texts.rows:
        found, *keys = reference.run(ids, [reference.output, *names])
        kept[ids.tobytes()] = dict(zip(names, keys, strict=True))
        logits[ids.tobytes()] = {reference.output: found}
    known = Known(reference, logits)
    print(f"{len(texts.rows)} texts of {len(texts.rows[0])} tokens, {texts.origin}\n")
    for number, (name, changes) in enumerate(parts.items()):
        for given in (False, True) if names else (False,):
            subject, _ = graph(changes, given=given)
            fed = Known(subject, kept) if given else subject
            quality = measure(known, fed, texts, float("inf"))  # type: ignore[arg-type]
            if number == 0 and not given:
                heads = [f"{part.first}-{part.end - 1}" for part in quality.stretches]
                print(f"| part | keys selected by | {' | '.join(heads)} | perplexity | keys exchanged |")
                print(f"|{'---|' * (len(heads) + 4)}")
            cells = [f"{part.kl_mean:.5f}" for part in quality.stretches]
            ratio = quality.perplexity_ratio or 1.0
            exchanged = "" if given or not names else f"{share_exchanged(subject, names, kept, texts):.1%}"
            chosen = "float32" if given else "itself"
            print(f"| {name} | {chosen} | {' | '.join(cells)} | {ratio - 1:+.2%} | {exchanged} |", flush=True)


def share_exchanged(
    subject: WholeTexts, names: list[str], kept: dict[bytes, dict[str, np.ndarray]], texts: Texts
) -> float:
    """Return the share of selected keys that the float32 graph does not select, over tokens that leave out any."""
    shares = []
    for ids in texts.rows:
        for name, found in zip(names, subject.run(ids, names), strict=True):
            expected = kept[ids.tobytes()][name]
            window = found.shape[-1]
            shares += [
                1 - len(np.intersect1d(ours, theirs)) / window
                for head, other in zip(found[0], expected[0], strict=True)
                for ours, theirs in zip(head[window::8], other[window::8], strict=True)
            ]
    return float(np.mean(shares)) if shares else 0.0


if __name__ == "__main__":
    main()
