"""python -m bayeslora.doctor --laws: one line a check, and an exit code that tells."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bayeslora import doctor
from bayeslora.laws import checks

TWO = [next(checks.linear_checks()), next(checks.sam_checks())]


def test_prints_a_line_a_check_and_ends_with_0(monkeypatch, capsys):
    monkeypatch.setattr(checks, "all_checks", lambda: TWO)
    assert doctor.main(["--laws"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if " ok" in line] == ["SGLD", "SAMSGLD"]
    assert "every sampler has its law" in out


def test_a_broken_law_ends_with_1(monkeypatch, capsys):
    wrong = replace(TWO[0], expected={"cov 00": 1.1 * TWO[0].expected["cov 00"]})
    monkeypatch.setattr(checks, "all_checks", lambda: [TWO[1], wrong])
    assert doctor.main(["--laws"]) == 1
    out = capsys.readouterr().out
    assert "WRONG" in out
    assert "1 of 2 checks failed" in out


def test_without_a_task_it_says_what_it_can_do(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    assert ended.value.code == 2
    assert "--laws" in capsys.readouterr().err
