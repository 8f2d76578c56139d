import os

import pytest

from doge_export import processors
from doge_export.processors import allowed_processors, is_restricted


@pytest.fixture(autouse=True)
def sixteen(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(processors, "_quotas", lambda: [])


def test_all_of_them():
    assert allowed_processors() == 16
    assert not is_restricted()


def test_affinity(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert allowed_processors() == 2
    assert is_restricted()


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("4,2", 4), ("99", 16), ("", 16), ("0", 16), ("many", 16)])
def test_omp_num_threads(monkeypatch, value, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert allowed_processors() == expected


@pytest.mark.parametrize(("quotas", "expected"), [([2.0], 2), ([1.5, 8.0], 2), ([0.25], 1), ([64.0], 16)])
def test_quotas_round_up(monkeypatch, quotas, expected):
    monkeypatch.setattr(processors, "_quotas", lambda: quotas)
    assert allowed_processors() == expected


class TestControlGroups:
    @pytest.fixture
    def groups(self, monkeypatch, tmp_path):
        """Lay out control groups: lines of /proc/self/cgroup, and files with their text."""
        monkeypatch.undo()
        monkeypatch.setattr(processors, "CGROUPS", tmp_path)
        real = processors._read

        def lay_out(lines, files):
            monkeypatch.setattr(
                processors, "_read", lambda file: lines if str(file) == "/proc/self/cgroup" else real(file)
            )
            for name, text in files.items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
            return processors._quotas()

        return lay_out

    def test_version_2_counts_every_group_above(self, groups):
        files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n", "cpu.max": "800000 100000\n"}
        assert groups("0::/a/b\n", files) == [2.5, 8.0]

    def test_version_1(self, groups):
        files = {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}
        assert groups("5:memory:/y\n3:cpu,cpuacct:/x\n", files) == [3.0]

    def test_without_a_limit(self, groups):
        files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
        assert groups("1:cpu:/\n0::/\n", files) == []
        assert groups("", {}) == []
