"""The text form of API keys."""

import re

from hypothesis import given
from hypothesis import strategies as st

from libs.common.credentials import api_keys
from libs.common.credentials.api_keys import ALPHABET, ApiKeyText
from libs.common.credentials.verifiers import Verifiers

keys = st.builds(
    ApiKeyText, id=st.text(ALPHABET, min_size=12, max_size=12), secret=st.text(ALPHABET, min_size=43, max_size=43)
)


@given(keys)
def test_a_key_is_read_back_from_its_text(key: ApiKeyText) -> None:
    assert api_keys.parse(str(key)) == key
    assert re.fullmatch(r"arr_[0-9A-Za-z]{12}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", str(key))


@given(keys, st.integers(0, 66), st.sampled_from(ALPHABET + "_-. é"))
def test_one_wrong_character_anywhere_is_noticed(key: ApiKeyText, at: int, character: str) -> None:
    text = str(key)
    changed = text[:at] + character + text[at + 1 :]
    assert api_keys.parse(changed) == (key if changed == text else None)


@given(keys, st.integers(0, 66))
def test_a_key_that_was_not_copied_whole_is_noticed(key: ApiKeyText, length: int) -> None:
    assert api_keys.parse(str(key)[:length]) is None


@given(keys, st.integers(18, 66), st.sampled_from(ALPHABET + "_-. é\n"))
def test_of_a_key_with_a_mistake_only_the_id_is_shown(key: ApiKeyText, at: int, character: str) -> None:
    text = str(key)
    for pasted in (text, " " + text, text[:at] + character + text[at + 1 :], text[:at]):
        assert api_keys.id_of(pasted) == key.id
    assert api_keys.id_of(key.id) == key.id


@given(st.text())
def test_anything_else_is_no_key(text: str) -> None:
    assert api_keys.parse(text) is None
    assert api_keys.parse("arr_" + text) is None


def test_new_keys_differ_and_do_not_show_their_secret_in_a_traceback() -> None:
    made = {api_keys.new() for _ in range(200)}
    assert len({key.id for key in made}) == len({key.secret for key in made}) == 200
    key = made.pop()
    assert key.secret not in repr(key)


@given(st.text(), st.text())
def test_a_verifier_fits_its_secret_only_and_needs_the_cluster_secret(secret: str, other: str) -> None:
    here, elsewhere = Verifiers(b"one" * 11), Verifiers(b"two" * 11)
    stored = here.of(secret)
    assert here.matches(secret, (stored,))
    assert here.matches(secret, ("0" * 64, stored))
    assert here.matches(other, (stored,)) == (other == secret)
    assert not elsewhere.matches(secret, (stored,))
    assert not here.matches(secret, ())
