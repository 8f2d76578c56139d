import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from doge_export import export
from doge_export.assets import bundled
from doge_export.benchmark.bench import bench
from doge_export.benchmark.probe import probe
from doge_export.cli import main
from doge_export.errors import DogeExportError

GOLDEN = Path(__file__).parents[1] / "golden"
QUICK = {"rounds": 2, "new_tokens": 4, "prefill_length": 16}


def test_rates_are_ordered_and_positive(nano_folder):
    result = bench(nano_folder, **QUICK)
    for low, middle, high in result.rates["doge-export"].values():
        assert 0 < low <= middle <= high
    assert result.ratio("decode") is None


def test_comparison_runs_transformers_in_the_same_rounds(nano_folder):
    result = bench(nano_folder, compare=bundled("doge-nano"), **QUICK)
    assert result.rates.keys() == {"doge-export", "transformers"}
    expected = result.rates["doge-export"]["decode"][1] / result.rates["transformers"]["decode"][1]
    assert result.to_dict()["ratios"]["decode"] == expected


def test_an_older_generation_is_compared_with_the_module_and_the_table_says_so(tmp_path):
    folder = export(GOLDEN / "g4b-additive", tmp_path / "out", validate=False).folder
    arguments = ["bench", str(folder), "--compare", str(GOLDEN / "g4b-additive"), "--rounds", "1", "--new-tokens", "4"]
    done = CliRunner().invoke(main, [*arguments, "--prefill-length", "16"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "doge-export's PyTorch module" in done.stdout and "transformers has no G4b" in done.stdout
    assert "ratio" in done.stdout


def test_probe_measures_a_process_of_its_own(nano_folder):
    seen = probe(nano_folder, 1, 4)
    assert 0 < seen["load_seconds"] < seen["first_token_seconds"]
    assert seen["base_bytes"] < seen["peak_bytes"]


def test_a_prompt_that_leaves_no_room(nano_folder):
    with pytest.raises(DogeExportError, match="leaves no room"):
        bench(nano_folder, prompt_length=100_000)


def test_more_tokens_than_the_export_holds_are_cut(nano_folder):
    settings = bench(nano_folder, rounds=1, new_tokens=100_000, prompt_length=240, prefill_length=8).settings
    assert settings["new_tokens"] == 256 - 240


@pytest.mark.parametrize("options", [{}, {"threads": -1}])
def test_a_folder_that_is_none_is_one_line(tmp_path, options):
    with pytest.raises(DogeExportError):
        bench(tmp_path, **options)


def test_a_comparison_with_no_checkpoint_is_one_line(nano_folder, tmp_path):
    with pytest.raises(DogeExportError, match=r"config\.json"):
        bench(nano_folder, compare=tmp_path, **QUICK)


def test_command_prints_json(nano_folder):
    arguments = ["bench", str(nano_folder), "--json", "--rounds", "1", "--new-tokens", "2", "--prefill-length", "8"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rates"]["doge-export"]["prefill"][1] > 0
