"""Engines with bounded caches: their graphs executed by onnxruntime against PyTorch, and their runtime over a recorder.

No GPU takes part: the plugin's operator is computed by the function of `trt.on_cpu`, and the plugin's kernels by
tests/plugins/test_fused_attention.py.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from compositions import EVERY, random_module
from doge_runs import distinct_ids, module_logits
from engine_on_cpu import NOWHERE, EngineOnCpu, agreement, plan_of, random_traced, reference, stored_traced
from onnxruntime_engine import make_execute

from doge_export import export
from doge_export.assets import bundled
from doge_export.cli import main
from doge_export.errors import DogeExportError
from doge_export.evaluation.scorer import Scorer
from doge_export.graph import trace
from doge_export.package import read_manifest
from doge_export.package.manifest import UNLIMITED
from doge_export.runtime import load
from doge_export.runtime.engine.engine_decoder import PATIENCE
from doge_export.targets.passes import reduced_angles
from doge_export.targets.passes.fixed_capacity import LONGEST
from doge_export.trt.make import make_engine
from doge_export.trt.plan_engine import plan_engine
from doge_export.trt.traced import Traced

WINDOW = 64
"""keep_window_size of the bundled models; compositions keep 9 keys."""
BAR = 2e-5
"""Of a standard deviation; onnxruntime and PyTorch add in other orders."""
OTHER_ORDER = 3e-5
"""Of compositions whose sums PyTorch rounds further apart: with M7's experts an unbounded engine is 2.1e-5 off, too."""


def apart(found, expected):
    assert found.shape == expected.shape and np.isfinite(found).all()
    return np.abs(found - expected).max() / expected.std()


# -- the graph ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiny():
    """A random module with 9 slots, and its engine in float32."""
    module, traced = random_traced("as today", 100)
    return module, EngineOnCpu(plan_of(traced, precision="fp32", cache="bounded", max_batch=3))


@pytest.mark.parametrize("chunks", [None, [1] * 70, [7] * 10, [30, 1, 39]], ids=str)
def test_any_chunks_give_what_pytorch_gives(tiny, chunks):
    module, engine = tiny
    ids = distinct_ids(1, 70, 96)[0]
    assert apart(engine.logits(ids, chunks), reference(module, ids)) <= BAR
    assert all(cache.shape[2] == 9 for cache in engine.caches.values())


def test_slots_tell_the_best_keys(tiny):
    _, engine = tiny
    _, traced = random_traced("as today", 100)
    whole = EngineOnCpu(plan_of(traced, precision="fp32"))
    ids = np.random.default_rng(3).integers(0, 96, 70)  # tokens come again: equal scores, of which the first is kept
    assert apart(engine.logits(ids, [20, 50]), whole.logits(ids)) <= BAR
    for layer in (0, 1):
        scores, slots = whole.caches[f"past_key_values.{layer}.score"], engine.caches[f"past_key_values.{layer}.slots"]
        best = np.argsort(-scores[..., :70], axis=-1, kind="stable")[..., :9]
        assert np.array_equal(np.sort(slots, axis=-1), np.sort(best, axis=-1))


def test_rows_of_a_batch_are_as_long_as_they_are(tiny):
    module, engine = tiny
    rows = [ids[:length] for ids, length in zip(distinct_ids(3, 40, 96), (40, 25, 3), strict=True)]
    engine.reset(3, fill=7)
    found = [[] for _ in rows]
    for start in range(0, 40, 8):
        for row, logits in enumerate(engine.read([row[start : start + 8].tolist() for row in rows], padding=5)):
            found[row].append(logits)
    for row, ids in enumerate(rows):
        assert apart(np.concatenate(found[row]), reference(module, ids)) <= BAR


def test_experts_of_each_token():
    module = random_module(EVERY["M7"] | {"keep_window_size": 9}, cdmoe_routing="per-token", max_length=80)
    traced = Traced(trace(module), 80, dataclasses.replace(NOWHERE, chunkable_length=80))
    plans = (plan_of(traced, precision="fp32", cache=cache) for cache in ("bounded", "unbounded"))
    ids = distinct_ids(1, 50, 96)[0]
    found, unbounded = (EngineOnCpu(plan).logits(ids, [13, 1, 36]) for plan in plans)
    assert apart(found, unbounded) <= BAR and apart(found, reference(module, ids)) <= OTHER_ORDER


@pytest.mark.parametrize("name", ["heads of 20, one of keys", "angles scaled by YaRN", "biases"])
def test_compositions(name):
    """With biases nothing is fused, and the plain operator has the slots."""
    module = random_module(EVERY[name] | {"keep_window_size": 9}, max_length=80)
    traced = Traced(trace(module), 80, NOWHERE)
    plan = plan_of(traced, precision="fp32", cache="bounded")
    operators = {node.op_type for node in plan.graph.graph if node.domain == "doge"}
    assert operators == {"DynamicMaskAttention" if name == "biases" else "FusedDynamicMaskAttention"}
    ids = distinct_ids(1, 50, 96)[0]
    unbounded = EngineOnCpu(plan_of(traced, precision="fp32")).logits(ids, [13, 1, 36])
    found = EngineOnCpu(plan).logits(ids, [13, 1, 36])
    assert plan.findings == () and apart(found, unbounded) <= BAR
    assert apart(found, reference(module, ids)) <= OTHER_ORDER


@pytest.mark.parametrize(("precision", "bar"), [("fp16", 1e-3), pytest.param("bf16", 3e-2, marks=pytest.mark.slow)])
def test_sixteen_bits_lose_what_they_lose_without_a_bound(precision, bar):
    """doge-nano beyond its window, every value rounded as a GPU stores it."""
    module, traced = stored_traced(bundled("doge-nano"), 160)
    ids = distinct_ids(1, 100, 1000)[0]
    expected = reference(module, ids)
    bounded, whole = (
        agreement(
            expected,
            EngineOnCpu(plan_of(traced, precision=precision, cache=cache), is_rounded=True).logits(ids, [70, 30]),
        )
        for cache in ("bounded", "unbounded")
    )
    assert bounded.mean_kl <= min(bar, 1.1 * whole.mean_kl + 1e-6)


def test_angles_at_any_position_are_as_exact_as_float32():
    """Against float64 functions of the same float32 angles, up to the last position of unlimited rows."""
    from one_thread import open_session

    angles = ir.val("angles", ir.DataType.FLOAT, [4096])
    nodes = [ir.node(name, [angles]) for name in ("Cos", "Sin")]
    for node in nodes:
        value = node.outputs[0]
        value.name, value.dtype, value.shape = node.op_type.lower(), ir.DataType.FLOAT, angles.shape
    graph = ir.Graph([angles], [node.outputs[0] for node in nodes], nodes=nodes, opset_imports={"": 18}, name="angles")
    model = ir.Model(graph, ir_version=8)
    reduced_angles.ReducedAngles()(model)
    random = np.random.default_rng(0)
    given = np.exp(random.uniform(np.log(1e-3), np.log(LONGEST - 1), 4096)).astype(np.float32)
    given[:3] = 0, 4096, LONGEST - 1
    cosines, sines = open_session(model).run(["cos", "sin"], {"angles": given})
    assert (
        max(np.abs(cosines - np.cos(given.astype(float))).max(), np.abs(sines - np.sin(given.astype(float))).max())
        < 4e-7
    )


def test_longest_is_the_manifests():
    assert LONGEST == UNLIMITED == reduced_angles.STEP**2


# -- the plan ----------------------------------------------------------------------------------------------------------
def test_memory_does_not_follow_the_length():
    plans = [
        plan_engine("doge-nano", max_length=length, cache=cache, calibrate=False)
        for length, cache in ((4000, "bounded"), ("unlimited", "bounded"), (4000, "unbounded"))
    ]
    bounded, unlimited, whole = (plan.memory.caches for plan in plans)
    layers, heads, size = 4, 2, 64
    assert bounded == unlimited == layers * heads * WINDOW * (2 * 2 * size + 4 + 4)
    assert whole == layers * heads * 4000 * (2 * 2 * size + 4)
    assert [plan.max_length for plan in plans] == [4000, UNLIMITED, 4000] and plans[1].findings == ()
    assert plans[1].profiles["prefill"]["input_ids"][2] == (1, 4096)  # read whole beyond the trained length
    assert not any(4000 in value.shape for value in plans[0].graph.graph.initializers.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": "unlimited", "cache": "unbounded"}, "max length unlimited needs a cache of constant size"),
        ({"cache": "bounded", "max_length": WINDOW}, "keeps 64 keys and max length 64 needs no more"),
        ({"cache": "bounded", "attention": "native"}, "TensorRT has no layer"),
        ({"cache": "slow"}, "choose unbounded or bounded"),
        ({"cache": "bounded", "max_prompt": 0}, "max prompt is 0"),
    ],
)
def test_refused_in_one_line(options, message):
    with pytest.raises(DogeExportError, match=message):
        plan_engine("doge-nano", calibrate=False, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no gate", "without keep_window_size"),
        ("score by query head, selected", "one score for each of the 2 key/value heads, this model has 4"),
    ],
)
def test_refused_models(name, message):
    _, traced = random_traced(name, 100)
    with pytest.raises(DogeExportError, match=message):
        plan_of(traced, cache="bounded")


def test_an_export_with_bounded_caches_gives_an_engine_with_them(tmp_path):
    export("doge-nano", tmp_path / "out", target="portable", cache="bounded", max_length=200, validate=False)
    plan = plan_engine(tmp_path / "out", calibrate=False)
    assert (plan.cache, plan.max_length) == ("bounded", 200) and plan.inputs["past_key_values.0.slots"].shape[
        2
    ] == WINDOW
    assert plan_engine(tmp_path / "out", cache="unbounded", calibrate=False).cache == "unbounded"


def test_an_unlimited_export_needs_a_length_without_its_bounded_caches(monkeypatch):
    _, traced = stored_traced(bundled("doge-nano"), 160)
    unlimited = dataclasses.replace(traced, max_length=UNLIMITED)
    monkeypatch.setattr("doge_export.trt.plan_engine.open_model", lambda *_, **__: unlimited)
    with pytest.raises(DogeExportError, match="or a number with --max-length"):
        plan_engine("out", cache="unbounded")


# -- the runtime -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def built():
    """Folder and profiles of the engine of all tests, by name, once the first has built it."""
    return {}


@pytest.fixture
def engine(machine, tmp_path_factory, built):
    """doge-nano in float32 with 64 slots, opened over the recorder."""
    machine.trt.make_execute = make_execute
    if not built:
        folder = tmp_path_factory.mktemp("bounded") / "out"
        options = {"cache": "bounded", "precision": "fp32", "max_batch": 2, "max_logits": 16}
        make_engine("doge-nano", folder, validate=False, max_length="unlimited", **options)
        built |= {"folder": folder, "profiles": machine.trt.profiles}
    machine.trt.profiles = built["profiles"]
    with load(built["folder"]) as session:
        yield session


@pytest.fixture(scope="module")
def nano():
    module, _ = stored_traced(bundled("doge-nano"), 160)
    return module


IDS = distinct_ids(2, 160, 1000)


def test_an_engine_from_command_to_verdict(machine, tmp_path):
    """Validated against PyTorch, beyond the window too: in batches with padding, in pieces, token by token."""
    machine.trt.make_execute = make_execute
    out = tmp_path / "out"
    arguments = ["doge-nano", out, "--fp32", "--cache", "bounded", "--max-length", "80", "--max-batch", "2"]
    done = CliRunner().invoke(main, ["trt", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    manifest = read_manifest(out)
    assert "PASSED" in done.stdout and manifest.cache == "bounded"
    checks = {
        check["name"]: check for check in json.loads((out / "doge_export.json").read_text())["validation"]["checks"]
    }
    assert checks["beyond keep_window_size"]["passed"]
    assert "64 keys" in (out / "README.md").read_text()
    shown = CliRunner().invoke(main, ["inspect", str(out)]).output
    assert "bounded, 64 keys a layer and head" in shown


def test_logits_of_more_tokens_than_a_run_gives(engine, nano):
    """Tokens are read again for them, behind keys that the first reading has dropped."""
    expected = module_logits(nano, IDS)
    assert apart(engine.logits(IDS, chunks=[100, 60]), expected) <= BAR
    mask = np.ones_like(IDS)
    mask[1, :90] = 0
    padded = engine.logits(IDS, mask, chunks=[100, 60])
    assert apart(padded[0], expected[0]) <= BAR
    assert apart(padded[1, 90:], module_logits(nano, IDS[1:, 90:])[0]) <= BAR


def test_the_next_step_is_begun_while_there_are_free_slots(engine, machine, nano):
    """It may be of another token; when keys are dropped for it, it cannot be forgotten."""
    decoder = engine.decoder
    with engine.exclusive():
        engine.reset()
        ids = IDS[0, : WINDOW - PATIENCE - 6].tolist()
        (prediction,) = decoder.predict(np.array([ids]))
        ahead = []
        for _ in range(PATIENCE + 20):
            ids.append(int(prediction.argmax()))
            (prediction,) = decoder.predict(np.array([ids[-1:]]))
            ahead.append(bool(machine.cuda.work))
            assert prediction.argmax() == module_logits(nano, np.array([ids]))[0, -1].argmax()
        assert any(ahead) and not any(ahead[-14:]), ahead
        ids.append(7)
        (prediction,) = decoder.predict(np.array([[7]]))
        assert apart(prediction.logits(), module_logits(nano, np.array([ids]))[0, -1]) <= BAR


def test_goes_back_where_no_key_was_dropped_and_to_marks(engine, nano):
    decoder, ids = engine.decoder, IDS[:1, :120]
    with engine.exclusive():
        engine.reset()
        decoder.forward(ids[:, :50])
        assert decoder.recallable(17) == 17
        decoder.mark()
        decoder.forward(ids[:, 50:100])
        decoder.mark()
        decoder.forward(ids[:, 100:])
        assert (decoder.length, decoder.slots) == (120, WINDOW)
        keys, values = decoder.cache_snapshot()[0]  # validation looks at it where an answer is wrong
        assert keys.shape == values.shape == (1, 2, WINDOW, 64)
        assert [decoder.recallable(length) for length in (120, 119, 100, 99, 50, 30)] == [120, 100, 100, 50, 50, 30]
        with pytest.raises(DogeExportError, match="cannot be set back from 120 to 110 tokens"):
            decoder.rewind(110)
        expected = module_logits(nano, ids)
        for length in (100, 50, 30):
            decoder.rewind(length)
            found = decoder.forward(ids[:, length:], num_logits_to_keep=1)
            assert apart(found[0], expected[0, -1:]) <= BAR
            decoder.rewind(decoder.recallable(length))


def test_choices_behind_a_prompt_beyond_the_window_are_scored(engine, nano):
    """What they share is read again where the cache cannot go back to its end."""
    prompt = IDS[0, :100].tolist()
    with engine.exclusive():
        scorer = Scorer(engine)
        for choice in ([5, 6], [7, 8]):
            scores, _ = scorer.score([*prompt, choice[0]], 99, choice)
            logits = module_logits(nano, np.array([[*prompt, choice[0]]]))[0, 99:].astype(float)
            expected = logits[[0, 1], choice] - np.log(np.exp(logits).sum(-1))
            np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_padding_is_counted_when_it_goes_back(engine):
    decoder, ids = engine.decoder, IDS[:, :40]
    mask = np.ones_like(ids)
    mask[1, :7] = 0
    with engine.exclusive():
        decoder.reset(2)
        whole = decoder.forward(ids, mask)
        decoder.rewind(20)
        again = decoder.forward(ids[:, 20:], mask[:, 20:])
    np.testing.assert_allclose(again, whole[:, 20:], atol=1e-4)


def test_a_prompt_that_must_be_read_whole_and_is_too_long(engine):
    with pytest.raises(DogeExportError, match=r"5000 tokens are more than this engine reads at a time \(4096\), and"):
        engine.decoder.predict(np.ones((1, 5000), np.int64))


@pytest.mark.parametrize("cache", ["bounded", "unbounded"])
def test_a_state_goes_on_in_another_process(machine, tmp_path, cache):
    """Over the recorder; what another process opens is the same folder."""
    machine.trt.make_execute = make_execute
    folder = tmp_path / "out"
    precision, itemsize = ("bf16", 2) if cache == "bounded" else ("fp32", 4)
    make_engine("doge-nano", folder, validate=False, max_length=200, cache=cache, precision=precision)
    prompt = IDS[0, :90].tolist()
    with load(folder) as session:
        session.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=-1)
        session.save(tmp_path / "state")
        read = list(session._context.token_ids)
        ids = [*read, 5, 6, 7]
        expected = [*session.stream_reusing(ids, max_new_tokens=8, do_sample=False, eos_token_id=-1)]
        expected_ids = list(session._context.token_ids)
    size = (tmp_path / "state").stat().st_size
    slots = WINDOW if cache == "bounded" else len(read)
    per_slot = 4 * 2 * (2 * itemsize * 64 + 4 + (4 if cache == "bounded" else 0))
    assert size <= 1.1 * per_slot * slots
    with load(folder) as session:
        assert session.load_state(tmp_path / "state") == read
        before = session.decoder._runner.runs
        assert [*session.stream_reusing(ids, max_new_tokens=8, do_sample=False, eos_token_id=-1)] == expected
        assert list(session._context.token_ids) == expected_ids
        assert session.decoder._runner.runs - before <= 12  # three tokens and eight, none of the ninety
        with pytest.raises(DogeExportError, match="it is of another session"):
            session.decoder.restore({}, 3)


def test_a_chat_far_beyond_the_window_answers_as_the_unbounded_one(machine, tmp_path):
    machine.trt.make_execute = make_execute
    answers = []
    for cache in ("bounded", "unbounded"):
        folder = tmp_path / cache
        make_engine("doge-nano", folder, validate=False, max_length=240, cache=cache, precision="fp32")
        with load(folder) as session:
            chat = session.chat()
            questions = ("What is in the box?", "Where is the ball?", "Who has it?", "Thank you!", "And then?")
            answers.append(["".join(chat.send(question, max_new_tokens=24)) for question in questions])
            assert session.decoder.length > 2 * WINDOW
    assert answers[0] == answers[1]
