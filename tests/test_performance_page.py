"""docs/performance.rst says what was measured: its tables are those that the figures beside it come to."""

from __future__ import annotations

import json
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the peers need Linux", allow_module_level=True)

from benchmarks import page, profile
from benchmarks.callgraph import SYSTEM_CALLS, part_of


def test_tables_are_those_of_the_figures() -> None:
    """``python -m benchmarks.page`` writes them."""
    text = page.PAGE.read_text("utf-8")
    assert page.filled(text) == text


@pytest.mark.parametrize("name", ["own", "peers", "profile"])
def test_page_has_each_of_the_figures(name: str) -> None:
    """Each file is shown at its mark."""
    assert f".. begin of figures: {name}\n" in page.PAGE.read_text("utf-8")
    assert (page.FIGURES / f"{name}.json").exists()


def test_figures_that_change_are_another_page(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """What is between the marks is replaced, and nothing else."""
    document = json.loads((page.FIGURES / "profile.json").read_text())
    monkeypatch.setattr(page, "FIGURES", tmp_path)
    (tmp_path / "profile.json").write_text(json.dumps(document | {"p50_ms": 12.5}))
    text = "before\n\n.. begin of figures: profile\n\nold\n\n.. end of figures\n\nafter\n"
    filled = page.filled(text)
    assert filled.startswith("before\n\n.. begin of figures: profile\n\nOne command took 12.50 ms")
    assert filled.endswith("\n\n.. end of figures\n\nafter\n")
    assert page.filled(filled) == filled


def test_a_profile_tells_turns_calls_and_time_of_each_process(tmp_path, capsys) -> None:
    """Of one command, in the controller, the daemon and its spawner."""
    file = tmp_path / "profile.json"
    assert profile.main(["--quick", "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["p50_ms"] > 0
    processes = document["processes"]
    assert [*processes] == ["controller", "daemon", "spawner"]
    for name in ("controller", "daemon"):
        process = processes[name]
        assert process["turns"] > 0
        assert process["steps"] > 0
        assert process["calls"] > 100
        assert SYSTEM_CALLS in process["parts"]
        milliseconds = sum(part[1] for part in process["parts"].values())
        assert milliseconds == pytest.approx(process["cpu_ms"])
    assert processes["spawner"]["cpu_ms"] > 0
    assert "controller: " in capsys.readouterr().out


def test_a_part_is_a_module_or_a_package() -> None:
    """However deep below it the file is."""
    assert part_of("/somewhere/sandd/_core/transport/protocol.py") == "sandd: transport"
    assert part_of("/somewhere/sandd/_core/link.py") == "sandd: link"
    assert part_of("/somewhere/sandd/wire.py") == "sandd: wire"
    assert part_of("<attrs generated init sandd.wire.Attach>") == "sandd: wire"
    assert part_of("/lib/site-packages/sandd/_core/link.py") == "sandd: link"
    assert part_of("/lib/python3/site-packages/trio/_core/_run.py") == "trio"
    assert part_of(f"{sys.base_prefix}/lib/python3/heapq.py") == "Python's library"
