"""The grammar is reproducible, the recipe trains, and the bundled checkpoints are what they claim to be."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "train_nano"
ASSETS = ROOT / "doge_export" / "assets"
BUNDLED = ["doge-nano", "doge-nano-moe"]
TINY = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "keep_window_size": 16,
}


@pytest.fixture(autouse=True)
def sample_modules(monkeypatch):
    """The sample's modules import each other by bare name, as a script's neighbours do."""
    monkeypatch.syspath_prepend(str(SAMPLE))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    for script in SAMPLE.glob("*.py"):
        sys.modules.pop(script.stem, None)


def test_same_seed_gives_the_same_documents():
    import grammar

    assert grammar.documents(5, 50) == grammar.documents(5, 50)
    assert grammar.documents(5, 50)[:20] == grammar.documents(5, 20)


def test_held_out_documents_are_not_training_documents():
    import grammar

    training = {json.dumps(document) for document in grammar.documents(grammar.TRAINING_SEED, 4000)}
    held_out = [json.dumps(document) for document in grammar.documents(grammar.HELD_OUT_SEED, 400)]
    seen = sum(document in training for document in held_out)
    # Greetings and general knowledge come from short lists; whatever holds facts does not repeat.
    assert 0 < seen < 0.2 * len(held_out)


def test_every_question_has_exactly_one_answer():
    import dialogues
    import grammar

    for messages in grammar.questions(grammar.HELD_OUT_SEED, 100, 8):
        text, answer = messages[0]["content"], messages[1]["content"]
        assert text.endswith("?")
        assert sum(sentence == answer.rstrip(".") for sentence in text.split(". ")) <= 1
    told = dialogues.facts(grammar.random.Random(0), 8)
    asked = [question for fact in told for question in dict(fact.questions)]
    assert len(asked) == len(set(asked))


SYSTEM = "<|start_header_id|>system<|end_header_id|>\nCutting Knowledge Date: December 2024\nToday Date: {date}\n{text}"
CONVERSATION = [
    {"role": "user", "content": " Hey how are you doing? "},
    {"role": "assistant", "content": "Fine.\n"},
    {"role": "user", "content": "Bye!"},
]
TURNS = (
    "<|start_header_id|>user<|end_header_id|>\nHey how are you doing?<|end_of_text|>\n\n"
    "<|start_header_id|>assistant<|end_header_id|>\nFine.<|end_of_text|>\n\n"
    "<|start_header_id|>user<|end_header_id|>\nBye!<|end_of_text|>\n\n"
)


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("system", [None, "Be kind. "])
@pytest.mark.parametrize("date", [None, "26 Jul 2025"])
@pytest.mark.parametrize("answering", [False, True])
def test_chat_template_renders_as_doge_instruct(name, system, date, answering):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    messages = [{"role": "system", "content": system}] * (system is not None) + CONVERSATION
    options = {"date_string": date} if date else {}
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answering, **options)
    block = SYSTEM.format(date=date or "December 2024", text=(system or "").strip())
    header = "<|start_header_id|>assistant<|end_header_id|>\n"
    assert text == "<|begin_of_text|>" + block + "<|end_of_text|>\n\n" + TURNS + header * answering


@pytest.mark.parametrize("name", BUNDLED)
def test_tokenizer_has_doges_ids_and_loses_nothing(name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    assert len(tokenizer) == 1024
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.convert_ids_to_tokens([3, 4]) == ["<|start_header_id|>", "<|end_header_id|>"]
    text = "Größe 12345  \n\n\tdon't — 狗 🐕!"
    ids = tokenizer(text).input_ids
    assert ids[0] == 0
    assert tokenizer.decode(ids[1:]) == text


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_few_steps_lower_the_loss_and_repeat_exactly(kind, threads, tmp_path, monkeypatch):
    """Two threads, as in a real training, wait for each other most of the time when the processors are busy."""
    import nano
    import train

    monkeypatch.setattr(train, "THREADS", threads)
    changes = TINY | ({"num_experts": 16, "num_experts_per_tok": 2} if kind == "moe" else {})
    stages = train.Stage(2, 2, 16), train.Stage(12, 2, 32), train.Stage(4, 2, 48)
    recipe = train.Recipe(*stages, warmup=2, learning_rate=1e-2)
    losses = [train.train(nano.config(kind, **changes), recipe, tmp_path / run) for run in ("one", "two")]
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 0.5
    saved = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("one", "two")]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_checkpoint_is_small_and_its_mechanisms_are_alive(name):
    folder = ASSETS / name
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 4_000_000
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert all(weight.isfinite().all() for weight in weights.values())
    strengths = [weight for key, weight in weights.items() if key.endswith(".A")]
    residuals = [weight for key, weight in weights.items() if key.endswith("_residual")]
    assert len(strengths) == 4
    assert len(residuals) == 8
    assert min(weight.abs().min() for weight in strengths) > 0.1
    assert all((weight != 1).float().mean() > 0.5 for weight in residuals)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_checkpoint_loads_in_transformers_whole(name):
    from transformers import DogeForCausalLM

    model, info = DogeForCausalLM.from_pretrained(ASSETS / name, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.is_moe == name.endswith("moe")
    assert model.config.keep_window_size < model.config.max_position_embeddings


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_checkpoint_tells_and_recalls(name):
    import evaluate
    import nano
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    forward = nano.forward_of(nano.load(ASSETS / name))
    assert evaluate.perplexity(forward, tokenizer, rows=4) < 1.6
    if name == "doge-nano":  # the mixture of experts, half as wide beside its experts, tells but hardly recalls
        # A colour out of ten, a place out of ten: guessing gives a tenth.
        assert evaluate.recall_accuracy(forward, tokenizer, facts=2, questions=40) > 0.4
    greeting = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hey how are you doing?"}], add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer.decode(evaluate.greedy(forward, greeting, 40, tokenizer.eos_token_id))
    assert "thank you" in answer
    assert answer.endswith("<|end_of_text|>")
