"""The demo as a whole: a node, an upload, a job, a chart; interrupted and gone on with."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.runtime.cli.demo import run_demo
from headrace.runtime.cli.demo.place import MARK
from headrace.runtime.errors import JobFailed

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_analyses_the_file_that_it_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "demo"

    assert run_demo(data=data, size_mb=1, workers=2) == 0

    text = capsys.readouterr().out
    assert "Kestrel headphones" in text
    assert "human ratings" in text
    assert (data / "sentiment.png").read_bytes().startswith(b"\x89PNG")
    [result] = (data / "buckets" / "results").glob("*/result.json")
    assert str(result) in text
    assert (data / "buckets" / "inbox" / "reviews.csv").stat().st_size >= 1_000_000


def test_a_second_demo_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run_demo(data=tmp_path / "demo", size_mb=1, workers=1, json=True)
        found = json.loads(capsys.readouterr().out)

    assert [
        path.parent.name for path in (tmp_path / "demo" / "buckets" / "results").glob("*/result.json")
    ] == [found["job_id"]]


def test_the_users_own_file_is_analysed_and_told_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "my reviews.csv"
    mine.write_text("sentence,rating\nI love it,3\nI hate it,-3\n")

    code = run_demo(input=mine, data=tmp_path / "demo", chart=tmp_path / "chart.svg", json=True, workers=1)

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (found["function"], found["source"]) == ("reviews.score", "my reviews.csv")
    assert found["result"]["reviews"] == 2
    assert found["result"]["correlation"] == pytest.approx(1.0)
    assert json.loads(Path(found["result_file"]).read_text()) == found["result"]
    assert b"<svg" in Path(found["chart"]).read_bytes()
    assert mine.exists()


def test_a_file_that_cannot_be_analysed_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("id,comment\n1,great\n")

    with pytest.raises(JobFailed, match="the file has: id, comment"):
        run_demo(input=tmp_path / "bad.csv", data=tmp_path / "demo", workers=1)


def test_an_interrupted_demo_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "demo"
    asked = "import sys; from pathlib import Path; from headrace.runtime.cli.demo import run_demo; "
    asked += "sys.exit(run_demo(data=Path(sys.argv[1]), size_mb=8, workers=1))"
    with subprocess.Popen(
        [sys.executable, "-c", asked, str(data)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as demo:  # fmt: skip
        assert demo.stdout is not None
        told = ""
        for line in demo.stdout:
            told += line
            if "it started the job" in line and told.count("it started the job") == 1:
                demo.send_signal(signal.SIGINT)
        assert demo.wait(30) == 130, told
    assert f"headrace demo --keep --data {data}" in told.replace("\n", " ")
    assert (data / MARK).is_file()

    assert run_demo(data=data, keep=True, workers=2) == 0

    assert "which was interrupted" in capsys.readouterr().out
    assert len(list((data / "buckets" / "results").glob("*/result.json"))) == 1
