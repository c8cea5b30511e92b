"""A user's data are read before a model is loaded, by every command that takes them."""

import json
import sys
from pathlib import Path

import pytest
import transformers

from lynx_moe.cli import main
from lynx_moe.lab.replay import capture

COMMANDS = {
    "fidelity": ["--batch-sizes", "2", "--sequences", "4"],
    "bakeoff": ["--batch-sizes", "2", "--sequences", "4", "--mixes", "mixed"],
    "profile": ["--batch-size", "2", "--sequences", "4", "--experts", "1"],
    "calibrate": ["--sequences", "4"],
    "record": ["--batch-size", "2", "--sequences", "4"],
    "record --engine transformers": ["--batch-size", "2", "--sequences", "4"],
}
FILES = {
    "missing.jsonl": (None, "cannot be read as text"),
    "chat.json": ('{"messages": []}', "ShareGPT's shape"),
    "short.txt": ("a b c", ("no text of", "nothing in split")),
    "empty.jsonl": ("".join(json.dumps({"prompt": "", "continuation": "a b c d e f"}) + "\n" for _ in range(9)),
                    ("have an empty prompt", "nothing in split")),
}  # fmt: skip


@pytest.fixture
def one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["lynx-moe", *args])
        with pytest.raises(SystemExit, match="2"):
            main()
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(capture, "in_own_process", load)


@pytest.fixture
def bare(folder: Path, tmp_path: Path) -> Path:
    """The tiny model, with a tokenizer that puts no token before a text."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", FILES)
def test_bad_data_cost_no_load(one_line, no_weights, bare: Path, tmp_path: Path, command: str, name: str) -> None:
    content, says = FILES[name]
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    out = tmp_path / "out" / "file"
    line = one_line(*command.split(), str(bare), *COMMANDS[command], "--data", str(tmp_path / name), "--out", str(out))
    assert any(reason in line for reason in ([says] if isinstance(says, str) else says))
    assert not out.exists()


@pytest.mark.parametrize("command", ["fidelity", "bakeoff", "profile", "record --engine transformers"])
def test_too_few_documents_cost_no_load(one_line, no_weights, bare: Path, tmp_path: Path, command: str) -> None:
    lines = ({"prompt": f"{n} a", "continuation": "a b c d e f"} for n in range(3))
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    sizes = [value.replace("2", "4") for value in COMMANDS[command]]
    said = one_line(*command.split(), str(bare), *sizes, "--data", str(file), "--out", str(tmp_path / "out"))
    assert "few.jsonl" in said or "3 sequences" in said
