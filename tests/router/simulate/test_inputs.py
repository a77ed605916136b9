"""Fleet files and traces: what is read, and one clear sentence for what cannot be."""

from pathlib import Path

import pytest

from libs.common.contracts.requests import Priority
from services.router.simulate.failures import BadInput
from services.router.simulate.fleet import NodeSpec, check_models_fit, parse_node, read_fleet
from services.router.simulate.trace import TraceJob, read_trace, write_trace
from tests.router.simulate.playing import fleet, node

NODE = '[[node]]\nname = "n1"\nvram_gb = 24\nslots = 2\ndecode_tps = 60.5\nprefill_tps = 1500\nload_gbps = 2\n'
MODEL = '[[model]]\nname = "a"\nsize_gb = 4.9\n'


def written(folder: Path, text: str, name: str = "fleet.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_fleet_is_read_as_it_is_written(tmp_path: Path):
    read = read_fleet(written(tmp_path, NODE + NODE.replace("n1", "n2") + MODEL))

    assert read.nodes[0] == NodeSpec(name="n1", vram_gb=24, slots=2, decode_tps=60.5, prefill_tps=1500, load_gbps=2)
    assert [node.name for node in read.nodes] == ["n1", "n2"]
    assert read.models["a"].size_gb == 4.9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[node]\n", "fleet.toml is no TOML: "),
        (MODEL, r"fleet.toml has no \[\[node\]\] table"),
        (NODE, r"fleet.toml has no \[\[model\]\] table"),
        ("node = 5\n" + MODEL, r"fleet.toml has no \[\[node\]\] table"),
        (NODE + MODEL + "[other]\n", r"fleet.toml: 'other' is not known; a fleet has \[\[node\]\]"),
        (NODE.replace("slots = 2\n", "") + MODEL, r"\[\[node\]\] number 1 \(n1\): the key is missing: `slots`"),
        (NODE + "speed = 3\n" + MODEL, r"\[\[node\]\] number 1 \(n1\): the key is not known: `speed`"),
        (NODE.replace("24", "'24'") + MODEL, r"\(n1\): vram_gb: expected `float`, got `str`"),
        (NODE.replace("slots = 2", "slots = 0") + MODEL, r"\(n1\): slots: expected `int` >= 1"),
        (NODE.replace("60.5", "0") + MODEL, r"\(n1\): decode_tps: expected `float` > 0"),
        (NODE.replace("60.5", "nan") + MODEL, r"\(n1\): decode_tps: "),
        (NODE.replace("60.5", "inf") + MODEL, r"\(n1\): decode_tps: "),
        (NODE + MODEL.replace("4.9", "-1"), r"\[\[model\]\] number 1 \(a\): size_gb: expected `float` > 0"),
        (NODE + NODE + MODEL, r"two \[\[node\]\] are named 'n1'"),
        (NODE + MODEL + MODEL, r"two \[\[model\]\] are named 'a'"),
    ],
)
def test_what_is_wrong_in_a_fleet_file_is_named_with_table_and_key(tmp_path: Path, text: str, said: str):
    with pytest.raises(BadInput, match=said):
        read_fleet(written(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(BadInput, match=r"none.toml cannot be read: No such file"):
        read_fleet(tmp_path / "none.toml")
    with pytest.raises(BadInput, match=r"none.jsonl cannot be read: No such file"):
        read_trace(tmp_path / "none.jsonl")


def test_a_trace_is_read_in_order_of_time_and_optional_fields_may_be_missing_or_null(tmp_path: Path):
    text = (
        '{"t": 2, "model": "b", "prompt_tokens": 5, "output_tokens": 6}\n\n'
        '{"t": 0.5, "model": "a", "prompt_tokens": 1, "output_tokens": 2, "client": "ann", "priority": "batch",'
        ' "conversation": "c7", "more": 1}\n'
        '{"t": 2, "model": "c", "prompt_tokens": 0, "output_tokens": 0, "client": null, "conversation": null}\n'
    )

    first, second, third = read_trace(written(tmp_path, text, "t.jsonl"))

    assert first == TraceJob(
        t=0.5, model="a", prompt_tokens=1, output_tokens=2, client="ann", priority=Priority.BATCH, conversation="c7"
    )
    assert (second.model, third.model, third.client) == ("b", "c", None)


def test_a_written_trace_is_read_the_same(tmp_path: Path):
    jobs = [TraceJob(t=n / 3, model="a", prompt_tokens=n, output_tokens=1, conversation="x") for n in range(9)]
    write_trace(tmp_path / "t.jsonl", jobs)

    assert read_trace(tmp_path / "t.jsonl") == jobs
    with pytest.raises(BadInput, match="cannot be written: No such file"):
        write_trace(tmp_path / "none" / "t.jsonl", jobs)


LINE = '{"t": 1, "model": "a", "prompt_tokens": 5, "output_tokens": 6}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "this is no JSON object"),
        ("[1]", "expected `object`, got `array`"),
        (LINE.replace('"a"', '"\ud83e"'), "this is no JSON object"),
        (LINE.replace('"model": "a", ', ""), "missing required field `model`"),
        (LINE.replace('"a"', '""'), "model: expected `str` of length >= 1"),
        (LINE.replace("5", "5.5"), "prompt_tokens: expected `int`, got `float`"),
        (LINE.replace("6", "-6"), "output_tokens: expected `int` >= 0"),
        (LINE.replace('"t": 1', '"t": -1'), "t: expected `float` >= 0"),
        (LINE.replace('"t": 1', '"t": 1, "priority": "vip"'), "priority: invalid enum value 'vip'"),
    ],
)
def test_what_is_wrong_in_a_trace_is_named_with_its_line(tmp_path: Path, line: str, said: str):
    path = tmp_path / "t.jsonl"
    path.write_bytes((LINE + "\n" + line.strip()).encode(errors="surrogatepass"))

    with pytest.raises(BadInput, match=f"t.jsonl, line 3: .*{said}"):
        read_trace(path)


def test_a_trace_without_jobs_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="has no jobs"):
        read_trace(written(tmp_path, "\n\n", "t.jsonl"))


def test_models_that_are_unknown_or_fit_no_node_are_refused_before_the_run():
    described = fleet(node("n1", vram_gb=8), node("n2", vram_gb=16), small=4, exact=16, large=16.1)

    check_models_fit(described, ["small", "exact"], "t.jsonl")
    with pytest.raises(
        BadInput, match=r"t.jsonl wants the model 'large', which fits no node: it takes 16.1 GB, .* 16 GB"
    ):
        check_models_fit(described, ["small", "large"], "t.jsonl")
    with pytest.raises(BadInput, match=r"wants the model 'none', which the fleet file has no \[\[model\]\] for"):
        check_models_fit(described, ["none"], "t.jsonl")


def test_an_added_node_takes_what_is_not_said_from_the_one_nearest_in_vram():
    described = fleet(node("small", vram_gb=8, slots=1), node("large", vram_gb=24, slots=4, decode_tps=90))

    assert parse_node("name=x, vram_gb=20, load_gbps=2.5", described) == NodeSpec(
        name="x", vram_gb=20, slots=4, decode_tps=90, prefill_tps=100, load_gbps=2.5
    )
    assert parse_node("name=x,vram_gb=12", described).slots == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "'x' is not key=value with a key of name, vram_gb, slots"),
        ("name=x,vram=3", "'vram=3' is not key=value"),
        ("vram_gb=3", "name is missing"),
        ("name=x", "vram_gb is missing"),
        ("name=x,vram_gb=much", "vram_gb is not a number"),
        ("name=x,vram_gb=3,slots=0", "slots: expected `int` >= 1"),
        ("name=x,vram_gb=3,vram_gb=4", "vram_gb is given twice"),
    ],
)
def test_what_is_wrong_in_an_added_node_is_named(text: str, said: str):
    with pytest.raises(BadInput, match=said):
        parse_node(text, fleet(node()))


def test_an_added_node_needs_a_name_of_its_own():
    with pytest.raises(BadInput, match=r"two .* are named 'n1'"):
        fleet(node("n1")).with_nodes([node("n1")])
