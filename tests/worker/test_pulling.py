"""How far a pull is, from Ollama's lines."""

from libs.common.contracts.control import ModelAnswer, ModelWork
from services.worker.pulling import Pull


def fed(*lines: dict[str, object]) -> Pull:
    pull = Pull()
    for line in lines:
        pull.feed(line)
    return pull


def test_layers_are_added_up_and_only_success_is_success():
    lines = [
        {"status": "pulling manifest"},
        {"status": "pulling aa", "digest": "sha256:aa", "total": 100},
        {"status": "pulling aa", "digest": "sha256:aa", "total": 100, "completed": 100},
        {"status": "pulling bb", "digest": "sha256:bb", "total": 50, "completed": 20},
    ]
    pull = fed(*lines)
    assert pull.answer == ModelAnswer(state=ModelWork.RUNNING, status="pulling bb", completed=120, total=150)
    assert not pull.succeeded
    pull.feed({"status": "verifying sha256 digest"})
    assert (pull.answer.completed, pull.succeeded) == (120, False)
    pull.feed({"status": "success"})
    assert pull.succeeded


def test_a_layer_never_goes_back_when_a_line_leaves_its_bytes_out():
    pull = fed({"status": "x", "digest": "d", "total": 9, "completed": 5}, {"status": "x", "digest": "d", "total": 9})
    assert pull.answer.completed == 5


def test_nonsense_is_no_crash():
    pull = fed(
        {}, {"status": 5, "digest": 7}, {"digest": "d", "total": "9", "completed": -3}, {"digest": "d", "total": None}
    )
    assert (pull.answer.completed, pull.answer.total) == (0, 0)
