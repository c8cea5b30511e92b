"""The testbed as harness tasks: exactly the held-out items, scored as the testbed scores them. No engine here."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM

from lynx_moe.lab.evaluation import harness
from lynx_moe.testbed import tasks as testbed
from lynx_moe.testbed.harness import FOLDER
from lynx_moe.testbed.harness.data import ITEMS, exact_match, texts
from lynx_moe.testbed.tasks import TASKS, is_held_out

ANSWERS = {item.prompt: item.answer for task in TASKS for item in testbed.test_items(task, ITEMS)}


class Knows(LM):
    """Answers a share of the tasks rightly, and everything else with the right answer and one letter too many."""

    def __init__(self, tasks: set[str]) -> None:
        super().__init__()
        self.tasks = tasks

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        right = [ANSWERS[request.args[0]] for request in requests]
        return [a + ("  " if r.task_name in self.tasks else "x") for a, r in zip(right, requests, strict=True)]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def tasks() -> dict[str, Any]:
    return harness.load_tasks(["lynx_testbed"], allow_code=False)


def test_the_group_holds_one_task_per_exercise_and_nothing_else(tasks: dict[str, Any]) -> None:
    assert set(tasks) == {f"lynx_testbed_{task}" for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_documents_are_the_held_out_items(tasks: dict[str, Any], task: str) -> None:
    loaded = tasks[f"lynx_testbed_{task}"]
    docs = list(loaded.test_docs())
    assert docs == [vars(item) for item in testbed.test_items(task, ITEMS)]
    assert [loaded.doc_to_text(doc) for doc in docs] == [doc["prompt"] for doc in docs]
    assert [loaded.doc_to_target(doc) for doc in docs] == [doc["answer"] for doc in docs]
    assert not any("\n" in doc["prompt"] + doc["answer"] for doc in docs)  # what ends an answer and divides examples
    assert not any(is_held_out(doc["prompt"]) for doc in loaded.fewshot_docs())


def test_exact_match_ignores_spaces_at_the_ends_and_nothing_else() -> None:
    doc = {"prompt": "sort: 2 1 ->", "answer": " 1 2"}
    for answer, score in (("1 2", 1.0), (" 1 2 ", 1.0), ("1  2", 0.0), ("1 2 3", 0.0), ("", 0.0)):
        assert exact_match(doc, [answer]) == {"exact_match": score}


def test_the_groups_metric_is_the_mean_over_tasks() -> None:
    known = {"lynx_testbed_add", "lynx_testbed_walk"}
    manager = harness.task_manager(["lynx_testbed"])
    results = simple_evaluate(
        model=Knows(known), tasks=["lynx_testbed"], task_manager=manager, limit=3, bootstrap_iters=0
    )
    for task in TASKS:
        name = f"lynx_testbed_{task}"
        assert results["results"][name]["exact_match,none"] == float(name in known)
    assert results["groups"]["lynx_testbed"]["exact_match,none"] == pytest.approx(len(known) / len(TASKS))


def test_text_tasks_need_no_download() -> None:
    pieces = texts(kind="python", items_per_task=7)["test"]["text"]
    assert len(set(pieces)) == 7
    assert "lynx_testbed_text" in harness.task_manager(["lynx_testbed_text"]).all_groups


def test_every_task_file_is_in_the_package() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.suffix for path in files} <= {".py", ".yaml", ""}
    assert {path.name for path in files if path.suffix == ""} == {"_exercise_yaml", "_text_yaml"}
    assert {path.parent.relative_to(FOLDER).as_posix() for path in files} == {".", "exercises", "texts"}


def test_a_task_that_generates_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="only reads"):
        harness.load_tasks(["lynx_testbed_python"], allow_code=False)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a task of a user's own, whose data lie beside it, and a part that others include."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "items.jsonl").write_text('{"q": "1+1=", "a": "2"}\n{"q": "1+2=", "a": "3"}\n')
    (folder / "_shared_yaml").write_text("output_type: generate_until\n")
    (folder / "my_sums.yaml").write_text(
        "include: _shared_yaml\ntask: my_sums\ndataset_path: json\ndataset_kwargs: {data_files: {test: items.jsonl}}\n"
        'test_split: test\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{a}}"\nmetric_list: [{metric: exact_match}]\n'
    )
    return folder


@pytest.mark.parametrize("name", ["my_sums", "mine/my_sums.yaml", "mine"])
@pytest.mark.parametrize("inside", [True, False])
def test_tasks_of_a_users_own(own: Path, name: str, inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name from a folder, by file, and all of a folder; the data are found here or beside the file."""
    monkeypatch.chdir(own if inside else own.parent)
    if inside and name != "my_sums":
        name = f"../{name}"
    include = str(own) if name == "my_sums" else None
    loaded = harness.load_tasks([name], include, allow_code=False)
    assert [doc["q"] for doc in loaded["my_sums"].test_docs()] == ["1+1=", "1+2="]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine/nowhere.yaml", "the task file mine/nowhere.yaml does not exist"),
        ("empty", r"the folder empty holds no task file \(.yaml\)"),
        ("mine/torn.yaml", "task mine/torn.yaml cannot be loaded: "),
        ("mine/lost.yaml", "task mine/lost.yaml cannot be loaded: FileNotFoundError"),
    ],
)
def test_task_files_that_are_none(own: Path, name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    (own.parent / "empty").mkdir()
    (own / "torn.yaml").write_text("task: [\n")
    (own / "lost.yaml").write_text((own / "my_sums.yaml").read_text().replace("items", "others"))
    with pytest.raises(ValueError, match=says):
        harness.load_tasks([name], allow_code=False)
