"""What `lynx-moe record` hands to the engine: nothing that would end it and lose the rest."""

import json
from pathlib import Path

import pytest

from lynx_moe.lab.fidelity.measure import Settings
from lynx_moe.lab.replay import capture, recording
from lynx_moe.lab.shared.documents import Document


def test_sequences_that_the_engine_does_not_take_are_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    fits, long = Document("a", (1, 2), (3, 4)), Document("a", (1, 2, 3), (4, 5))
    assert capture._fitting([fits, long, fits], 4) == [fits, fits]
    assert "1 sequences longer than the 4 tokens" in capsys.readouterr().err
    assert capture._fitting([fits], 4) == [fits]
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="all 1 sequences are longer"):
        capture._fitting([long], 4)


def test_empty_prompts_leave_the_rest_recorded(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from lynx_moe.lab.fidelity import measure

    given = measure._loaded
    monkeypatch.setattr(measure, "_loaded", lambda kind, *name, **options: (
        given(kind, *name, **options) if kind != "AutoTokenizer"
        else lambda text, **_: {"input_ids": [5 + len(word) for word in text.split()]}))  # fmt: skip
    lines = [{"prompt": "" if n % 2 else "a bb", "continuation": "a b c d e f g"} for n in range(8)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    settings = Settings(model=str(folder), data=str(file), batch_sizes=(2,), num_sequences=8, steps=4)
    path = capture.capture("transformers", settings, "vanilla", 1.0, tmp_path / "r.safetensors")
    assert recording.load(path).rows.tolist() == [2] * 8
    assert "4 documents with an empty prompt are left out" in capsys.readouterr().err
