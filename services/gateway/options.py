"""The `options` of a request: what is checked, what the router decides instead, and what goes on to the node. Pure.

Options that make Ollama load a model anew belong to nobody who merely asks: two clients with different ones would reload it
in turns, at seconds each (ollama-facts.md §3.5).
"""

from typing import Any, NamedTuple

from libs.common.contracts.faults import Code, failed

MAX_NUM_CTX = 131_072
MAX_INTEGER = 2**63 - 1  # what Ollama's own type holds; beyond it, another number would be used in silence
# Where and how fast a model runs; no word of the answer depends on them. The node's own settings hold.
LEFT_TO_THE_NODE = frozenset({"num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"})
_INTEGERS = (
    "num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "num_ctx", "num_batch", "num_gpu", "main_gpu",
    "num_thread", "draft_num_predict",
)  # fmt: skip
_NUMBERS = ("top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty")


class Options(NamedTuple):
    """`passed` goes to the node; `num_ctx` is what the request needs, 0 when it says nothing."""

    passed: dict[str, Any] | None
    num_ctx: int = 0


def read_options(options: dict[str, Any] | None, *, max_num_ctx: int = MAX_NUM_CTX) -> Options:
    """Raises Failed: INVALID_REQUEST with the path.

    Known options of the wrong type give a 500 at Ollama, and num_predict 0 means "without end" (ollama-facts.md §1.6).
    """
    for name, value in (options or {}).items():
        _check(name, value)
    given = dict(options or {})
    num_ctx = given.pop("num_ctx", 0)
    if "num_ctx" in (options or {}) and num_ctx < 1:
        raise _wrong("num_ctx", "must be at least 1")
    if num_ctx > max_num_ctx:
        raise _wrong("num_ctx", f"is at most {max_num_ctx} here")
    passed = {name: value for name, value in given.items() if name not in LEFT_TO_THE_NODE}
    return Options(passed or None, num_ctx)


def _check(name: str, value: Any) -> None:
    if name in _INTEGERS and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong(name, "must be an integer")
    if name in _INTEGERS and not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise _wrong(name, "must fit into 64 bits")
    if name in _NUMBERS and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise _wrong(name, "must be a number")
    if name == "use_mmap" and value is not None and not isinstance(value, bool):
        raise _wrong(name, "must be true or false")
    if name == "num_predict" and value == 0:
        raise _wrong(name, "must be at least 1, or -1 for no limit of its own")
    if name == "stop" and not (isinstance(value, list) and all(isinstance(stop, str) for stop in value)):
        raise _wrong(name, "must be a list of strings")


def _wrong(name: str, what: str) -> Exception:
    path = f"options.{name}"
    return failed(Code.INVALID_REQUEST, f"{path} {what}", path=path)
