"""The launcher's arguments, and a task that cannot start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shallop_pod.launcher import main, parse_arguments


def test_the_executor_input_is_put_into_the_command_once(tmp_path: Path) -> None:
    executor_input = {"inputs": {"parameterValues": {"x": 1}}}
    text = json.dumps({"name": "t", "dir": str(tmp_path / "t"), "executorInput": executor_input})
    script = f'printf "%s\\n%s" "$0" "$1" > {tmp_path}/arguments'
    assert main(["--task", text, "--", "sh", "-c", script, "{{$}}", "a {{$}}"]) == 0
    assert (tmp_path / "arguments").read_text().splitlines() == [json.dumps(executor_input), "a {{$}}"]


def test_task_and_executor_input_may_be_files(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"outputs": {"outputFile": "/o"}}')
    (tmp_path / "task.json").write_text(
        json.dumps({"name": "t", "dir": "/d", "executorInputFile": str(tmp_path / "input.json"), "retryIndex": 2})
    )
    task, _ = parse_arguments(["--task", f"@{tmp_path}/task.json", "--", "true"])
    assert task.output_file == "/o" and task.retry_index == 2


@pytest.mark.parametrize("argv", [[], ["--task", "{}"], ["--task", "{", "--", "x"], ["--task", "{}", "--", "x"]])
def test_wrong_arguments_are_an_error_and_not_a_traceback(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("launcher: ")


def test_a_task_without_a_command_leaves_a_result(tmp_path: Path) -> None:
    text = json.dumps({"name": "t", "dir": str(tmp_path / "deep" / "task"), "executorInput": {}})
    assert main(["--task", text, "--"]) == 128
    result = json.loads((tmp_path / "deep" / "task" / "result.json").read_text())
    assert result["state"] == "FAILED" and result["exitCode"] == 128
    assert "no command" in result["error"]["message"]
    assert result["parameters"] == {} and result["artifacts"] == {}
