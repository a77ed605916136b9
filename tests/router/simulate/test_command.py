"""`arriero simulate` as a process, with nothing running."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[3]
FLEET, TRACE = ROOT / "deploy/simulate/fleet.toml", ROOT / "deploy/simulate/trace.jsonl"
POLICIES = ("loaded-then-depth", "least-depth", "round-robin", "random", "oracle")
FIELDS = {
    "jobs", "ttft_p50", "ttft_p95", "ttft_p99", "ttft_mean", "makespan", "loads_per_1000", "jain", "longest_wait", "clients",
}  # fmt: skip


def simulate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "libs.cli", "simulate", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_json_has_every_policy_with_every_field():
    done = simulate("--fleet", FLEET, "--trace", TRACE, "--policy", ",".join(POLICIES), "--seed", 3, "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == ["policies"]
    assert list(found["policies"]) == list(POLICIES)
    for one in found["policies"].values():
        assert set(one) == FIELDS
        assert one["jobs"] == 120
        assert set(one["clients"]) == {"ann", "ben", "cleo", "dan", "eve"}
        assert all(set(client) == {"jobs", "ttft_p95", "longest_wait"} for client in one["clients"].values())
    assert found["policies"]["oracle"]["loads_per_1000"] == 0


def test_the_same_call_says_the_same_and_another_seed_something_else():
    wanted = ("--fleet", FLEET, "--workload", "bursts", "--jobs", 300, "--load", 0.7, "--policy", "random", "--json")

    assert simulate(*wanted).stdout == simulate(*wanted).stdout != simulate(*wanted, "--seed", 2).stdout


def test_the_table_names_policies_and_clients():
    done = simulate("--fleet", FLEET, "--workload", "flood", "--jobs", 300)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("flood, load 0.9: 300 jobs on 8 nodes, seed 1\n")
    first_words = [line.split()[0] for line in done.stdout.splitlines() if line]
    assert set(POLICIES) | {"flood", "ann"} <= set(first_words)


def test_a_written_workload_is_a_trace_with_the_same_figures(tmp_path: Path):
    kept = tmp_path / "kept.jsonl"
    common = ("--fleet", FLEET, "--policy", "least-depth", "--json")
    made = simulate(*common, "--workload", "mixed", "--jobs", 200, "--write-trace", kept)
    read = simulate(*common, "--trace", kept)

    assert made.returncode == 0, made.stderr
    assert made.stdout == read.stdout


def test_an_added_node_is_compared_with_the_fleet_as_it_is():
    common = ("--fleet", FLEET, "--workload", "steady", "--jobs", 400, "--policy", "oracle")
    plain = json.loads(simulate(*common, "--json").stdout)
    done = simulate(*common, "--json", "--add-node", "name=new,vram_gb=24", "--add-node", "name=tiny,vram_gb=6,slots=1")

    found = json.loads(done.stdout)
    assert found["policies"] == plain["policies"]
    assert [node["name"] for node in found["with_nodes"]["added"]] == ["new", "tiny"]
    assert found["with_nodes"]["policies"]["oracle"]["ttft_mean"] < found["policies"]["oracle"]["ttft_mean"]

    said = simulate(*common, "--add-node", "name=new,vram_gb=24").stdout
    assert "With new (24 GB, 2 slots, 90 tokens/s, prefill 4000 tokens/s, load 2 GB/s):" in said
    assert "→" in said


def test_a_chart_is_well_formed_and_shows_every_policy(tmp_path: Path):
    chart = tmp_path / "ttft.svg"
    done = simulate("--fleet", FLEET, "--trace", TRACE, "--chart", chart)

    assert done.returncode == 0, done.stderr
    texts = {element.text for element in ElementTree.parse(chart).iter("{http://www.w3.org/2000/svg}text")}
    assert {*POLICIES, "p50", "p95", "p99", "trace.jsonl: 120 jobs, 8 nodes"} <= texts


def test_help_teaches():
    for done in (simulate("--help"), simulate("-h")):
        assert done.returncode == 0
        for word in ("[[node]]", "prefill_tps", "--add-node", "oracle", "flood", "output_tokens", "--export"):
            assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say which jobs: --trace FILE, or --workload with one of steady, "),
        (("--workload", "rush"), "there is no workload 'rush': choose from steady, "),
        (
            ("--trace", TRACE, "--load", "0.5"),
            "--workload, --load, --rate and --jobs make up jobs, --trace brings them",
        ),
        (("--workload", "steady", "--load", "0.5", "--rate", "2"), "give --load or --rate, not both"),
        (("--workload", "steady", "--load", "0"), "--load must be greater than 0"),
        (("--workload", "steady", "--rate", "nan"), "--rate must be greater than 0"),
        (("--trace", TRACE, "--policy", "best"), "there is no policy 'best': choose from "),
        (("--trace", TRACE, "--chart", "ttft.png"), "--chart writes SVG: name the file ttft.svg"),
        (("--trace", TRACE, "--chart", "/nowhere/ttft.svg"), "/nowhere/ttft.svg cannot be written"),
        (("--trace", TRACE, "--add-node", "name=x"), "--add-node 'name=x': vram_gb is missing"),
        (("--trace", "/nowhere.jsonl"), "/nowhere.jsonl cannot be read"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(arguments: tuple[str, ...], said: str):
    done = simulate("--fleet", FLEET, *arguments, "--json")

    assert done.returncode == 2
    assert done.stderr.startswith(f"arriero: {said}")
    assert done.stderr.count("\n") == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "usage"
    assert error["message"].startswith(said)


def test_a_model_that_fits_no_node_is_refused_before_the_run(tmp_path: Path):
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"t": 0, "model": "huge", "prompt_tokens": 1, "output_tokens": 1}\n')
    described = tmp_path / "fleet.toml"
    described.write_text(FLEET.read_text() + '\n[[model]]\nname = "huge"\nsize_gb = 400\n')

    for jobs, source in ((("--trace", trace), str(trace)), (("--workload", "steady"), "the workload steady")):
        done = simulate("--fleet", described, *jobs)

        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"arriero: {source} wants the model 'huge', which fits no node: it takes 400 GB, the largest node has 48 GB\n"
        )
