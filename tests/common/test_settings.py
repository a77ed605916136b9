"""Settings: environment, files, flags, and what `--check` and `--help` say."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from libs.common import runtime, settings
from libs.common.settings import ServiceSettings
from tests.common.tiny import SERVICE, TinySettings

SECRET = "correct horse battery"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(**variables: str | Path) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"ARRIERO_TINY_{name}", str(value))

    return give


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        runtime.main(SERVICE, list(arguments))
    code: int = ended.value.code  # type: ignore[assignment]
    return code


def file_with(folder: Path, content: str | bytes) -> Path:
    file = folder / "secret"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_a_secret_may_be_in_a_file_whose_end_of_line_does_not_count(given: Any, tmp_path: Path) -> None:
    given(SECRET_FILE=file_with(tmp_path, f"{SECRET}\r\n"))
    assert settings.load(TinySettings).secret.get_secret_value() == SECRET


def test_only_secrets_are_read_from_files(given: Any, tmp_path: Path) -> None:
    given(SECRET=SECRET, NAME_FILE=file_with(tmp_path, "from a file"))
    assert settings.load(TinySettings).name == "tiny"


def test_a_file_that_is_missing_or_no_text_is_named_with_its_variable(
    given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = file_with(tmp_path, b"\xff\xfe\x00")
    given(SECRET_FILE=tmp_path / "absent", NATS_PASSWORD_FILE=binary)
    assert run("--check") == 2
    assert sorted(capsys.readouterr().err.splitlines()) == [
        f"ARRIERO_TINY_NATS_PASSWORD_FILE: {binary} is not text in UTF-8",
        f"ARRIERO_TINY_SECRET_FILE: cannot read {tmp_path / 'absent'}: No such file or directory",
    ]


@pytest.mark.parametrize("value", [SECRET, ""], ids=["set", "empty"])
def test_a_secret_given_both_ways_is_refused_because_nobody_knows_which_is_meant(
    given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    given(SECRET=value, SECRET_FILE=file_with(tmp_path, "another secret"))
    assert run("--check") == 2
    err = capsys.readouterr().err
    assert err == "ARRIERO_TINY_SECRET_FILE: ARRIERO_TINY_SECRET is given, too; give one of them\n"


def test_a_flag_goes_before_the_environment_and_that_before_the_default(given: Any) -> None:
    given(SECRET=SECRET)
    assert settings.load(TinySettings).name == "tiny"
    given(NAME="from the environment")
    assert settings.load(TinySettings, name=None).name == "from the environment"
    assert settings.load(TinySettings, name="from a flag").name == "from a flag"


def test_check_prints_every_value_in_effect_and_no_secret(
    given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given(
        SECRET_FILE=file_with(tmp_path, SECRET),
        NATS_PASSWORD="not to be shown",
        NATS_URL="nats://me:in-the-url@a:4222,nats://me:p@ss@b:4222",
        TAGS='["a", "b"]',
    )
    assert run("--check", "--name", "from a flag") == 0
    shown = capsys.readouterr().out
    lines = {line.partition("=")[0]: line.partition("=")[2].partition("  # ")[0] for line in shown.splitlines()}
    assert set(lines) == {f"ARRIERO_TINY_{name.upper()}" for name in TinySettings.model_fields}
    assert lines["ARRIERO_TINY_SECRET"] == lines["ARRIERO_TINY_NATS_PASSWORD"] == "(set)"
    assert lines["ARRIERO_TINY_NATS_URL"] == "nats://a:4222,nats://b:4222"
    assert (lines["ARRIERO_TINY_NAME"], lines["ARRIERO_TINY_TAGS"]) == ("from a flag", '["a", "b"]')
    assert lines["ARRIERO_TINY_DRAIN_GRACE"] == "30.0"
    assert not [secret for secret in (SECRET, "not to be shown", "in-the-url", "p@ss") if secret in shown]


def test_check_says_that_a_secret_is_not_set(given: Any, capsys: pytest.CaptureFixture[str]) -> None:
    given(SECRET=SECRET)
    assert run("--check") == 0
    assert "ARRIERO_TINY_NATS_PASSWORD=(not set)" in capsys.readouterr().out


def test_help_lists_every_variable_with_its_meaning_and_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    said = capsys.readouterr().out
    assert SERVICE.about in said
    for name, field in TinySettings.model_fields.items():
        assert f"ARRIERO_TINY_{name.upper()}\n" in said
        assert field.description is not None
        assert field.description in said
    assert "--name" in said
    assert "_FILE" in said


def test_all_bad_values_are_named_at_once_without_what_they_were(
    given: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given(SECRET="short", PORT="70000", DRAIN_GRACE="-1", LOG_LEVEL="loud")
    assert run("--check") == 2
    out, err = capsys.readouterr()
    named = [line.partition(":")[0] for line in err.splitlines()]
    assert sorted(named) == [f"ARRIERO_TINY_{name}" for name in ("DRAIN_GRACE", "LOG_LEVEL", "PORT", "SECRET")]
    assert "short" not in err.replace("too_short", "")
    assert out == ""


def test_a_missing_value_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert capsys.readouterr().err == "ARRIERO_TINY_SECRET: Field required\n"


def test_a_list_that_is_no_json_ends_with_a_line_not_a_traceback(
    given: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given(SECRET=SECRET, TAGS="a, b")
    assert run("--check") == 2
    err = capsys.readouterr().err
    assert "tags" in err
    assert err.count("\n") == 1


def test_several_servers_are_separated_by_commas(given: Any) -> None:
    given(SECRET=SECRET, NATS_URL=" nats://a:1 , nats://b:2,")
    assert settings.load(TinySettings).nats_servers == ["nats://a:1", "nats://b:2"]


def test_settings_of_other_services_in_the_same_environment_do_not_matter(
    given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="ARRIERO_OTHER_", extra="ignore", frozen=True)
        secret: SecretStr = Field(SecretStr(""), description="")

    given(SECRET=SECRET, UNKNOWN="1")
    monkeypatch.setenv("ARRIERO_OTHER_UNKNOWN", "1")
    assert settings.load(Other).secret.get_secret_value() == ""
