"""The model card, README.md of an exported folder, written from the manifest alone so that it agrees with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_export.package.manifest import GraphEntry, Manifest, SourceEntry

_RUNS_ON = {
    "onnxruntime": "onnxruntime, through doge-export: the key/value cache is one buffer per layer, written in place.",
    "portable": (
        "anything that reads ONNX: standard operators only, inputs and outputs named as Optimum and transformers.js "
        "name them."
    ),
    "canonical": (
        "compilers with a plugin for the operators of domain `doge`; each has a function body of standard operators, "
        "so that whatever runs functions of opset 23 runs the graph too."
    ),
    "native": (
        "doge-export's native decoder for CPUs, also as the one operator `doge.Decoder` of onnxruntime, whose library "
        "`doge-export plugin build --cpu` compiles; `plugins/README.md` of doge-export says how it is fed."
    ),
}
_WHAT = {
    "text-generation": "A Doge language model as an ONNX graph",
    "feature-extraction": "A Doge as an ONNX graph from tokens to the last hidden states",
    "text-classification": "A Doge text classifier as an ONNX graph",
}
_COMMANDS = {
    "text-generation": """doge-export generate out "Once upon a time"
doge-export chat out""",
    "feature-extraction": """doge-export embed out "Hey how are you doing?" --normalize
doge-export embed out --file texts.txt --output vectors.npy""",
    "text-classification": """doge-export classify out "Hey how are you doing?"
doge-export classify out --file texts.txt --json""",
}
_CALLS = {
    "text-generation": 'print(session.generate("Once upon a time", max_new_tokens=100))',
    "feature-extraction": """vectors = session.embed(["Hey how are you doing?", "How do you do?"], normalize=True)
print(vectors @ vectors.T)""",
    "text-classification": 'print(session.classify("Hey how are you doing?", top_k=3))',
}
OTHER_TOOLS = """## In other tools

The folder as it is, as `out`; none of them knows the model type `doge` yet, so transformers.js is told another one.

```js
// transformers.js
const config = { ...(await (await fetch("out/config.json")).json()), model_type: "llama" };
const pipe = await pipeline("text-generation", "out", { config });
const answer = await pipe("Once upon a time", { max_new_tokens: 100 });
```

```python
# onnxruntime-genai; without the overlay it takes onnx/model.onnx
config = onnxruntime_genai.Config("out")
config.overlay('{"model": {"decoder": {"filename": "onnx/model_q4.onnx"}}}')
model = onnxruntime_genai.Model(config)
```

```python
# Optimum
model = ORTModelForCausalLM.from_pretrained("out", subfolder="onnx", file_name="model.onnx")
model.num_key_value_heads = model.config.num_key_value_heads
```"""
BOUNDED = """## In other runtimes

Any runtime of standard ONNX keeps the state with no code but this: feed every output `present.*` back as
`past_key_values.*`, and `present_scores` as `past_scores`; all begin with 0 slots. `attention_mask` covers the new
tokens alone, `position_ids` count on from token to token, and a prompt may be read in pieces. Slots stay at
keep_window_size however long the text gets."""
_ROUTING = {
    "reference": (
        "`reference`: the experts of a token are chosen as the model's published code chooses them, by a reshape that "
        "mixes tokens. Logits equal those of that code, but those of a token depend on later tokens, on its neighbours "
        "in the batch, and on how a prompt is cut into pieces."
    ),
    "per-token": (
        "`per-token`: each token chooses its own experts. The model is causal and the rows of a batch do not touch "
        "each other; logits differ from those of the model's published code where it reads several tokens at once."
    ),
}


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write README.md into a folder; `manifest.files` may still be empty."""
    sections = [_header(manifest), _about(manifest), _usage(manifest), _parity(manifest), _limits(manifest)]
    if manifest.target == "portable" and manifest.task == "text-generation":
        sections.insert(-2, BOUNDED if manifest.cache == "bounded" else OTHER_TOOLS)
    if any(graph.quality for graph in manifest.graphs.values()):
        sections.insert(-1, _quality(manifest))
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _is_hub_id(source: SourceEntry) -> bool:
    return source.revision is not None


def _title(source: SourceEntry) -> str:
    # A local path is private to the user who exported; only its last part, the name of the model, is shown.
    name = source.model
    return name if _is_hub_id(source) else (Path(name).name or "Doge")


def _header(manifest: Manifest) -> str:
    source = manifest.source
    lines = ["---"]
    if source.license:
        lines.append(f"license: {json.dumps(source.license)}")
    if _is_hub_id(source):
        # "quantized" is what the hub calls every conversion of a model, of any precision
        lines += [f"base_model: {json.dumps(source.model)}", "base_model_relation: quantized"]
    lines += [
        f"pipeline_tag: {manifest.task}",
        "library_name: onnxruntime",
        "tags:",
        *(f"- {tag}" for tag in ("onnx", "onnxruntime", "doge")),
        "---",
    ]
    return "\n".join(lines)


def _about(manifest: Manifest) -> str:
    source = manifest.source
    made = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    origin = f"`{source.model}`, revision `{source.revision}`" if _is_hub_id(source) else "a local folder"
    architecture = manifest.architecture
    shape = (
        f"{architecture['num_hidden_layers']} layers, hidden size {architecture['hidden_size']}, "
        f"{architecture['num_attention_heads']} heads over {architecture['num_key_value_heads']} key/value heads, "
        f"vocabulary {architecture['vocab_size']}"
    )
    if architecture.get("moe"):
        moe = architecture["moe"]
        shape += f", {moe['num_experts']} experts of which {moe['num_experts_per_tok']} a token"
    graphs = [
        f"| `{name}` | {graph.precision} | {_opset(graph)} | {graph.ir_version} | {graph.onnxruntime or ''} "
        f"| {graph.nodes} |"
        for name, graph in manifest.graphs.items()
    ]
    return "\n".join(
        [
            f"# {_title(source)} as ONNX",
            "",
            f"{_WHAT[manifest.task]}: {shape}.",
            "",
            f"- exported from {origin}",
            *_adapter(source),
            f"- by doge-export {manifest.doge_export}" + (f" ({made})" if made else ""),
            *_identity(manifest),
            "",
            "| file | precision | opset | IR | onnxruntime from | nodes |",
            "|---|---|---|---|---|---|",
            *graphs,
        ]
    )


def _adapter(source: SourceEntry) -> list[str]:
    """Name the adapter that is merged; a local path is private, and only its last part is shown."""
    adapter = source.adapter
    if adapter is None:
        return []
    if adapter.revision is not None:
        return [f"- with the LoRA adapter `{adapter.model}`, revision `{adapter.revision}`, merged into the weights"]
    return [f"- with the LoRA adapter `{Path(adapter.model).name}`, a local folder, merged into the weights"]


def _identity(manifest: Manifest) -> list[str]:
    """List the generation of Doge and the labels, and what the user stated because the files leave it open."""
    architecture, lines = manifest.architecture, []
    if architecture.get("generation"):
        moe = architecture.get("moe") or {}
        experts = f", mixture of experts {moe['variant']}" if moe.get("variant") else ""
        lines.append(f"- generation {architecture['generation']} of Doge{experts}")
    said = {name: value for name, value in manifest.assumptions.items() if name != "task"}
    if said:
        pairs = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())
        lines.append(f"- said when it was exported, since the files of the checkpoint leave it open: {pairs}")
    if architecture.get("labels"):
        lines.append(f"- labels: {', '.join(f'`{label}`' for label in architecture['labels'])}")
    return lines


def _opset(graph: GraphEntry) -> str:
    return ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in graph.opset.items())


def _usage(manifest: Manifest) -> str:
    return f"""## Run it

With this folder as `out`, once doge-export is installed (`pip install .` in a clone of its repository, or `pip install`
with its wheel file):

```
{_COMMANDS[manifest.task]}
```

```python
import doge_export

session = doge_export.load("out")
{_CALLS[manifest.task]}
```"""


def _parity(manifest: Manifest) -> str:
    validation = manifest.validation
    lines = ["## Equal to PyTorch?", ""]
    if manifest.skipped is not None:
        lines.append(
            f"**Not validated** ({manifest.skipped}). `doge-export validate out --model MODEL` compares this "
            "folder with its checkpoint."
        )
        return "\n".join(lines)
    reference = validation.get("reference", {})
    compared = "hidden states" if manifest.task == "feature-extraction" else "logits"
    judge = " ".join(str(reference[key]) for key in ("library", "version", "attention", "dtype") if reference.get(key))
    lines += [
        f"**{'PASSED' if manifest.passed else 'FAILED'}** against {judge}. Differences are those of the "
        f"{compared}, also in standard deviations of the reference's {compared}.",
        "",
        "| check | result | max difference | of std | same argmax | KL |",
        "|---|---|---|---|---|---|",
    ]
    for check in validation["checks"]:
        metrics = check.get("metrics", {})
        cells = [
            _number(metrics.get("max_abs")),
            _number(metrics.get("max_abs_over_std")),
            f"{metrics['argmax_agreement']:.2%}" if metrics.get("argmax_agreement") is not None else "",
            _number(metrics.get("kl_max")),
        ]
        lines.append(f"| {check['name']} | {check['status']} | {' | '.join(cells)} |")
    lines += _reach(validation, manifest)
    if reference.get("note"):
        lines += ["", f"The reference: {reference['note']}."]
    reasons = [f"- {check['name']}: {check['note']}" for check in validation["checks"] if check.get("note")]
    if reasons:
        lines += ["", *reasons]
    return "\n".join(lines)


def _quality(manifest: Manifest) -> str:
    """Describe the losses of each graph in fewer bits."""
    graphs = {name: (graph, graph.quality) for name, graph in manifest.graphs.items() if graph.quality}
    hidden = manifest.task == "feature-extraction"
    first = next(quality for _, quality in graphs.values())
    what = "1 - cosine of the hidden states" if hidden else "KL divergence of the next token, in nats"
    if manifest.task == "text-classification":
        what = "KL divergence of the classes, in nats"
    lines = [
        "## Fewer bits",
        "",
        f"Each file against `onnx/model.onnx`: {what}; on {first['positions']} positions, {first['text']}.",
        "",
        f"| file | {'1 - cosine' if hidden else 'KL'}, mean | 99 % | limit | same argmax | perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for name, (_, quality) in graphs.items():
        agreement, ratio = quality["argmax_agreement"], quality["perplexity_ratio"]
        cells = [
            f"`{name}`",
            f"{quality['kl_mean']:.3g} ± {quality['kl_standard_error'] or 0:.1g}",
            f"{quality['kl_p99']:.3g}",
            f"{quality['limit']:g}",
            "" if agreement is None else f"{agreement:.2%}",
            "" if ratio is None else f"{ratio - 1:+.2%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += _by_position({name: quality for name, (_, quality) in graphs.items()})
    lines += _reach(first, manifest)
    lines += ["", *(f"- `{name}`: {_how(graph)}" for name, (graph, _) in graphs.items())]
    few_bits = "com.microsoft.MatMulNBits"
    if manifest.target == "portable" and any(few_bits in graph.operators for graph, _ in graphs.values()):
        lines += [
            "",
            "Beside standard operators the quantised ones have MatMulNBits of com.microsoft.",
        ]
    precisions = " or ".join(f"`{graph.precision}`" for graph, _ in graphs.values())
    return "\n".join([*lines, "", f"`--precision` of the commands and `precision` of `load` choose {precisions}."])


def _by_position(qualities: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of means by position; folders of an older doge-export have none."""
    parts = next((quality["stretches"] for quality in qualities.values() if quality.get("stretches")), None)
    if parts is None or any(len(quality.get("stretches", ())) != len(parts) for quality in qualities.values()):
        return []
    lines = [
        "",
        "By position, in texts of each length (the table above has the stretch where it is largest):",
        "",
        f"| tokens of text | position | {' | '.join(f'`{name}`' for name in qualities)} |",
        f"|---|---|{'---|' * len(qualities)}",
    ]
    for number, part in enumerate(parts):
        means = [_rounded(quality["stretches"][number]["kl_mean"]) for quality in qualities.values()]
        lines.append(f"| {part['length']} | {part['first']}-{part['end'] - 1} | {' | '.join(means)} |")
    return lines


def _reach(judged: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """Say up to which token a comparison reached, if not to the last; those of an older doge-export do not tell."""
    length = judged.get("judged_length")
    if not isinstance(length, int) or not 0 < length < manifest.max_length:
        return []
    return ["", f"Judged up to token {length} of the {manifest.max_length} that this folder holds, and none behind."]


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _how(graph: GraphEntry) -> str:
    parts = [] if graph.quantization is None else _weights(graph.quantization)
    if graph.typing:
        largest = max(graph.typing["largest"].values(), key=lambda extreme: extreme["magnitude"])
        parts.append(
            f"{'' if parts else 'weights, '}activations and the key/value cache in float16; float32 inside norms, "
            "softmax, angles and scores; logits are given as float32. The largest float16 value on that text is "
            f"{largest['magnitude']:.4g}, of 65504. For GPUs and browsers: on a CPU int8 is "
            f"{'faster' if parts else 'smaller and faster'}"
        )
    return "; ".join(parts)


def _weights(quantization: Mapping[str, Any]) -> list[str]:
    """Return what is said of weights in fewer bits, and of caches in 8."""
    method = {"nearest": "rounded to the nearest", "gptq": "GPTQ"}[quantization["method"]]
    parts = [f"weights of {quantization['bits']} bits, {quantization['block']} to a scale, {method}"]
    if quantization.get("expanded"):
        parts.append("onnxruntime expands them to float32 when it creates a session, and is then as fast as with fp32")
    if quantization.get("cache") == "int8":
        parts.append("keys and values cached in 8 bits, a scale for each head and channel")
    if "calibration" in quantization:
        calibration = quantization["calibration"]
        parts.append(f"calibrated on {calibration['tokens']} tokens ({calibration['text']})")
    if kept := len(quantization["exceptions"]):
        parts.append(f"{kept} weights are stored otherwise, see `doge_export.json`")
    return parts


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _limits(manifest: Manifest) -> str:
    whole = ", prompt and answer together" if manifest.task == "text-generation" else " in a text"
    lines = [
        "## Limits",
        "",
        f"- At most {manifest.max_length} tokens{whole}. A longer one is refused.",
        f"- Target `{manifest.target}`: {_RUNS_ON.get(manifest.target, 'see the documentation of doge-export.')}",
    ]
    if manifest.cache == "bounded":
        window = manifest.architecture["keep_window_size"]
        lines.append(
            f"- The cache is bounded, exactly: each layer and head keeps the {window} keys that a later token may "
            "attend to, so memory and time of a token do not grow with the text."
        )
        if manifest.chunkable_length < manifest.max_length:
            lines.append(
                f"- A prompt of more than {manifest.chunkable_length} tokens is read in one piece, whose memory grows "
                "with its square; an answer, token by token, may have any length."
            )
    if manifest.cdmoe_routing:
        lines.append(f"- Expert routing {_ROUTING[manifest.cdmoe_routing]}")
    elif manifest.chunkable_length == 0:
        lines.append(
            "- In this generation of Doge a token may see no key at all, and then attends evenly to whatever is read "
            "with it: its answer depends on padding and on how a text is cut into pieces. "
            "doge-export reads texts whole."
        )
    lines.append("- `doge-export verify out` compares every file with the hashes in `doge_export.json`.")
    return "\n".join(lines)
