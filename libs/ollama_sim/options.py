"""The `options` of a request: types as Ollama checks them, and what the engine and the scheduler make of them."""

from typing import Any

import msgspec

_INTEGERS = frozenset({
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict",
    "num_keep", "seed", "num_predict", "top_k", "repeat_last_n",
})  # fmt: skip
_FLOATS = frozenset({
    "top_p", "min_p", "typical_p", "temperature", "repeat_penalty", "presence_penalty", "frequency_penalty",
})  # fmt: skip
_RUNAWAY_WINDOWS = 10  # an answer without a limit ends after ten context windows
_CTX_STEP = 256  # the engine rounds the context up to a multiple of this


class BadOption(ValueError):
    """Becomes a 500 although it is the client's mistake, as on the real server."""


class RunnerOptions(msgspec.Struct, frozen=True):
    """The options that belong to a loaded engine; None = left to the server."""

    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    num_thread: int | None = None
    draft_num_predict: int | None = None
    use_mmap: bool | None = None
    does_shift: bool = True


_RUNNER_FIELDS = tuple(name for name in RunnerOptions.__struct_fields__ if name != "does_shift")


class Sampling(msgspec.Struct, frozen=True):
    """The options that belong to one request."""

    num_predict: int = -1
    num_keep: int = 4
    seed: int | None = None
    stop: tuple[str, ...] = ()


def check_options(options: dict[str, Any]) -> None:
    """Unknown names pass, known names with the wrong JSON type do not."""
    for name, value in options.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            continue
        if name in _INTEGERS and not is_number:
            raise BadOption(f'option "{name}" must be of type integer')
        if name in _FLOATS and not is_number:
            raise BadOption(f'option "{name}" must be of type float32')
        if name == "use_mmap" and not isinstance(value, bool):
            raise BadOption(f'option "{name}" must be of type boolean')
        if name == "stop" and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise BadOption(f'option "{name}" must be of type array')


def runner_options(options: dict[str, Any], does_shift: bool | None) -> RunnerOptions:
    known: dict[str, Any] = {name: options[name] for name in _RUNNER_FIELDS if options.get(name) is not None}
    numbers = {name: value if isinstance(value, bool) else int(value) for name, value in known.items()}
    return msgspec.convert({**numbers, "does_shift": does_shift is not False}, RunnerOptions)


def sampling(options: dict[str, Any]) -> Sampling:
    seed = options.get("seed")
    predict = options.get("num_predict")
    return Sampling(
        num_predict=-1 if predict is None else int(predict),
        num_keep=int(options.get("num_keep") or 4),
        seed=None if seed is None or seed == -1 else int(seed),
        stop=tuple(filter(None, options.get("stop") or ())),
    )


def token_limit(num_predict: int, num_ctx: int, *, is_native_chat: bool) -> int | None:
    """How many tokens an answer may have; None = no limit at all, which only a 0 on the rendered paths gives."""
    if num_predict == 0:
        return 1 if is_native_chat else None
    ceiling = _RUNAWAY_WINDOWS * num_ctx
    return ceiling if num_predict < 0 else min(num_predict, ceiling)


def usable_context(num_ctx: int) -> int:
    """What the engine allots for a requested context; `/api/ps` goes on showing the requested number."""
    return max(_CTX_STEP, -(-num_ctx // _CTX_STEP) * _CTX_STEP)
