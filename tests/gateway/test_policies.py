"""What operators may write about models and nodes, and what becomes of it."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given

from libs.common.contracts.catalog import ModelPolicy, NodePolicy, OnCpu
from libs.common.contracts.control import ModelOp, ModelOrder
from libs.common.contracts.faults import Code, Failed
from services.gateway.policies import ModelChange, changed, read_model_change, read_node_policy, read_order
from tests.gateway.bodies import objects

BEFORE = ModelPolicy(name="m:1", pins=("a", "b"), num_ctx=4096, keep_alive="5m", on_cpu=OnCpu.NEVER)


def after(body: dict[str, Any], before: ModelPolicy = BEFORE) -> ModelPolicy:
    return changed(before, read_model_change(json.dumps(body).encode()))


def refusal(read: Any, body: Any) -> Failed:
    with pytest.raises(Failed) as error:
        read(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert error.value.fault.code is Code.INVALID_REQUEST
    return error.value


def test_what_is_named_changes_and_the_rest_stays():
    assert after({"num_ctx": 8192}) == ModelPolicy(
        name="m:1", pins=("a", "b"), num_ctx=8192, keep_alive="5m", on_cpu=OnCpu.NEVER
    )
    assert after({"keep_alive": -1, "on_cpu": "always"}) == ModelPolicy(
        name="m:1", pins=("a", "b"), num_ctx=4096, keep_alive=-1, on_cpu=OnCpu.ALWAYS
    )


def test_null_is_back_to_the_default():
    assert after({"num_ctx": None, "keep_alive": None, "on_cpu": None, "pins": None}) == ModelPolicy(name="m:1")


@pytest.mark.parametrize(
    ("body", "pins"),
    [
        ({"pins": ["c", "c"]}, ("c",)),
        ({"pin": ["c", "a"]}, ("a", "b", "c")),
        ({"unpin": ["a", "x"]}, ("b",)),
        ({"pin": ["c"], "unpin": ["b"]}, ("a", "c")),
        ({"pins": []}, ()),
    ],
)
def test_pins_are_set_or_more_or_less(body: dict[str, Any], pins: tuple[str, ...]):
    assert after(body).pins == pins


def test_only_new_pins_are_looked_at():
    change = ModelChange({}, pin=("a", "c"))
    assert change.newly_pinned(BEFORE) == ("c",)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"num_ctx": "8192"}, "num_ctx"),
        ({"num_ctx": True}, "num_ctx"),
        ({"num_ctx": 1}, "num_ctx"),
        ({"num_ctx": 10**8}, "num_ctx"),
        ({"keep_alive": "300"}, "keep_alive"),
        ({"keep_alive": "-1"}, "keep_alive"),
        ({"keep_alive": 1.5}, "keep_alive"),
        ({"keep_alive": True}, "keep_alive"),
        ({"keep_alive": 2**40}, "keep_alive"),
        ({"keep_alive": "5 m"}, "keep_alive"),
        ({"on_cpu": "maybe"}, "on_cpu"),
        ({"on_cpu": []}, "on_cpu"),
        ({"pins": "a"}, "pins"),
        ({"pin": ["a.b"]}, "pin"),
        ({"pin": ["*"]}, "pin"),
        ({"pins": ["a"], "pin": ["b"]}, "pins"),
        ({"context": 5}, "context"),
        ({}, None),
        ([], None),
        (b"{", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_what_is_wrong_is_named(body: Any, path: str | None):
    assert refusal(read_model_change, body).fault.path == path


@pytest.mark.parametrize("text", ["5m", "24h", "-1m", "0", "1h30m", "1.5h", "500ms", ".5s"])
def test_durations_are_gos(text: str):
    assert after({"keep_alive": text}).keep_alive == text


@given(
    objects(
        ["pins", "pin", "unpin", "num_ctx", "keep_alive", "on_cpu", "op", "model", "draining"],
        {"num_ctx": 4096, "keep_alive": "5m"},
    )
)
def test_any_json_is_taken_or_refused_and_never_a_crash(body: dict[str, Any]):
    sent = json.dumps(body).encode()
    for read in (
        lambda: changed(BEFORE, read_model_change(sent)),
        lambda: read_node_policy("a", sent),
        lambda: read_order(sent, "a", lambda model: BEFORE, "op"),
    ):
        with contextlib.suppress(Failed):
            read()


def test_a_node_drains_or_not():
    assert read_node_policy("n", b'{"draining": true}') == NodePolicy(name="n", draining=True)
    for body in ({}, {"draining": 1}, {"draining": None}, {"drain": True}):
        refusal(lambda sent: read_node_policy("n", sent), body)


def order(body: dict[str, Any], node: str = "c", policy: ModelPolicy = BEFORE) -> ModelOrder:
    return read_order(json.dumps(body).encode(), node, lambda model: policy, "op")


def test_a_load_has_what_the_policy_says():
    load = {"op": "load", "model": "m:1"}
    assert order(load) == ModelOrder(op=ModelOp.LOAD, model="m:1", keep_alive="5m", num_ctx=4096, op_id="op")
    assert order(load, node="a").keep_alive == -1, "pinned there"
    assert order(load | {"keep_alive": "1h"}, node="a").keep_alive == "1h"
    plain = order(load, policy=ModelPolicy(name="m:1"))
    assert (plain.keep_alive, plain.num_ctx) == (None, None)
    assert order({"op": "pull", "model": "hf.co/org/name:Q4"}).num_ctx is None


def test_a_load_with_another_context_than_the_fleets_is_refused():
    assert order({"op": "load", "model": "m:1", "num_ctx": 4096}).num_ctx == 4096
    with pytest.raises(Failed, match="4096 in the whole fleet") as error:
        order({"op": "load", "model": "m:1", "num_ctx": 8192})
    assert error.value.fault.path == "num_ctx"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"op": "drop", "model": "m:1"}, "op"),
        ({"model": "m:1"}, "op"),
        ({"op": "load"}, "model"),
        ({"op": "load", "model": ""}, "model"),
        ({"op": "load", "model": "a b"}, "model"),
        ({"op": "load", "model": "a" * 301}, "model"),
        ({"op": "pull", "model": "m:1", "num_ctx": 4096}, "num_ctx"),
        ({"op": "unload", "model": "m:1", "keep_alive": 0}, "keep_alive"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(body: dict[str, Any], path: str):
    with pytest.raises(Failed) as error:
        order(body)
    assert (error.value.fault.code, error.value.fault.path) == (Code.INVALID_REQUEST, path)
