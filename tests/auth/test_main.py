"""The command line and the settings of the auth service."""

from pathlib import Path

import pytest

from libs.common import runtime
from services.auth.main import SERVICE

GOOD = {"CLUSTER_SECRET": "c" * 40}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, **variables: str) -> int:
    for name, value in variables.items():
        monkeypatch.setenv(f"ARRIERO_AUTH_{name}", value)
    with pytest.raises(SystemExit) as ended:
        runtime.main(SERVICE, list(arguments))
    code: int = ended.value.code  # type: ignore[assignment]  # argparse and runtime exit with numbers
    return code


def test_check_shows_the_effective_values_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("f" * 40 + "\n")
    more = {
        "BOOTSTRAP_CLIENT_ID": "operator",
        "BOOTSTRAP_CLIENT_SECRET": "o" * 40,
        "ISSUER": "https://auth.example.org/",
    }
    assert run(monkeypatch, "--check", CLUSTER_SECRET_FILE=str(file), **more) == 0
    out = capsys.readouterr().out
    assert "ARRIERO_AUTH_CLUSTER_SECRET=(set)" in out
    assert "ARRIERO_AUTH_ISSUER=https://auth.example.org " in out
    assert "f" * 40 not in out
    assert "o" * 40 not in out


def test_help_names_every_variable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    assert all(f"ARRIERO_AUTH_{name.upper()}" in out for name in SERVICE.settings.model_fields)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "CLUSTER_SECRET"),
        ({"CLUSTER_SECRET": "short"}, "CLUSTER_SECRET"),
        ({**GOOD, "ISSUER": "auth.example.org"}, "ISSUER"),
        ({**GOOD, "ISSUER": "https://a/?q=1"}, "ISSUER"),
        ({**GOOD, "BOOTSTRAP_CLIENT_ID": "operator"}, "BOOTSTRAP_CLIENT_SECRET"),
        ({**GOOD, "BOOTSTRAP_CLIENT_SECRET": "o" * 40}, "BOOTSTRAP_CLIENT_SECRET"),
        ({**GOOD, "BOOTSTRAP_CLIENT_ID": "operator", "BOOTSTRAP_CLIENT_SECRET": "guess"}, "BOOTSTRAP_CLIENT_SECRET"),
        ({**GOOD, "BOOTSTRAP_CLIENT_ID": "admin", "BOOTSTRAP_CLIENT_SECRET": "o" * 40}, "BOOTSTRAP_CLIENT_ID"),
        ({**GOOD, "PORT": "70000"}, "PORT"),
    ],
)
def test_a_bad_value_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], named: str
) -> None:
    assert run(monkeypatch, "--check", **variables) == 2
    err = capsys.readouterr().err
    assert f"ARRIERO_AUTH_{named}: " in err
    assert not any(secret in err for secret in ("c" * 40, "o" * 40, "guess"))
