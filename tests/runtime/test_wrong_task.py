"""Folders of one task asked for another's work, and manifests that name none."""

from __future__ import annotations

import json
import shutil

import pytest
from task_answers import CLASSES, FEATURES, WRITING

from doge_export.errors import DogeExportError
from doge_export.runtime import Session, load

CALLS = {
    WRITING: ["generate", "stream", "chat", "decoder"],
    FEATURES: ["hidden_states", "embed"],
    CLASSES: ["classify"],
}


class TestWrongTask:
    @pytest.mark.parametrize("task", CALLS)
    def test_says_what_the_folder_is_for(self, task_export, task):
        folder = task_export(task).folder
        session = load(folder, threads=1)
        assert session.task == task
        command = {WRITING: "generate", FEATURES: "embed", CLASSES: "classify"}[task]
        for needed, calls in CALLS.items():
            for call in calls:
                assert hasattr(session, call) == (needed == task)
                if needed == task:
                    continue
                with pytest.raises(DogeExportError) as caught:
                    getattr(session, call)
                assert str(caught.value) == (
                    f"{call} needs a folder exported for {needed}, and {folder} was exported for {task}: "
                    f"use `doge-export {command}`, or export the checkpoint with --task {needed}"
                )

    def test_hidden_states_have_no_logits(self, task_export):
        with pytest.raises(DogeExportError, match="logits needs a folder exported for text-generation"):
            load(task_export(FEATURES).folder, threads=1).logits([1])

    def test_other_names_are_as_usual(self, task_export):
        session = load(task_export(FEATURES).folder, threads=1)
        with pytest.raises(AttributeError, match="'FeatureSession' object has no attribute 'nonsense'") as caught:
            _ = session.nonsense
        assert not isinstance(caught.value, DogeExportError)


def test_a_manifest_without_a_task_is_a_language_model(task_export, tmp_path):
    folder = shutil.copytree(task_export(WRITING).folder, tmp_path / "old")
    manifest = json.loads((folder / "doge_export.json").read_text())
    del manifest["task"], manifest["assumptions"]
    (folder / "doge_export.json").write_text(json.dumps(manifest))
    assert isinstance(load(folder, threads=1), Session)


@pytest.mark.parametrize("labels", [None, [], "ab", [1, 2]])
def test_a_classifier_without_labels_is_one_line(task_export, tmp_path, labels):
    folder = shutil.copytree(task_export(CLASSES).folder, tmp_path / "damaged")
    manifest = json.loads((folder / "doge_export.json").read_text())
    manifest["architecture"]["labels"] = labels
    (folder / "doge_export.json").write_text(json.dumps(manifest))
    with pytest.raises(DogeExportError, match=r"doge_export\.json names no labels"):
        load(folder)


def test_a_session_is_a_context_manager_and_runs_no_more_behind_it(task_export):
    with load(task_export(WRITING).folder, threads=1) as session:
        assert session.decoder.max_batch is None
        assert len(session.generate([5, 6, 7], max_new_tokens=2).token_ids) > 0
    with pytest.raises(DogeExportError, match="this session was closed; load its folder again"):
        session.generate([5, 6, 7], max_new_tokens=2)
    with load(task_export(FEATURES).folder, threads=1) as features:
        assert features.embed("Hello!").shape[0] == 1


def test_an_old_name_of_a_precision_is_refused_with_the_new_one(task_export):
    with pytest.raises(DogeExportError, match="precision float32 is called fp32"):
        load(task_export(WRITING).folder, precision="float32")
