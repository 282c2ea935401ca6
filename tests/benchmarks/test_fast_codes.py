"""The benchmark of the codes for `fast`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fast_codes
from tests.index.helpers import activations


@pytest.mark.slow
def test_codes_are_measured_for_all_classes_and_for_classes_added_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fast_codes, "LISTS", 16)
    rows = activations(1500)
    # Two groups far apart. In the second measurement, the codes are trained on one of them.
    group = np.arange(1500) % 2
    rows[group == 1] += activations(1, seed=9)[0] * np.float16(2)
    np.savez(tmp_path / "rows.npz", v=rows, y=group)
    np.savez(tmp_path / "query.npz", v=rows[:40] + np.float16(0.01), y=group[:40])
    out = tmp_path / "out.json"
    fast_codes.main([str(tmp_path), "--queries", "40", "--json", str(out)])
    assert "1,500 vectors, 40 queries, 20 of them of classes added later" in capsys.readouterr().out
    found = {each["name"]: each for each in json.loads(out.read_text())}
    assert list(found) == [fast_codes.CURRENT, *(name for name, _, _ in fast_codes.OTHERS)]
    for each in found.values():
        few, some, many = each["recalls"]
        assert 0.1 < few <= some <= many <= 1
        assert len(each["unseen"]) == 3
        assert each["p50"] > 0
        assert each["bytes"] <= 300
    assert found[fast_codes.CURRENT]["recalls"][2] > 0.99
