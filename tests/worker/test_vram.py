"""How much GPU memory a node has: the setting, and what nvidia-smi would say."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.worker import vram
from services.worker.settings import WorkerSettings
from services.worker.vram import parse_size, read_answer, vram_of

LOCAL = "http://127.0.0.1:11434"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", None),
        ("0", 0),
        ("24GB", 24 * 10**9),
        ("24GiB", 24 * 1024**3),
        (" 7.5 gb ", 7_500_000_000),
        ("512MiB", 2**29),
    ],
)
def test_a_size_is_read(text: str, size: int | None):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["24", "GB", "-1GB", "24 G", "1e9GB", "24GB!", "٣GB"])
def test_what_is_no_size_is_refused_with_the_way_to_write_it(text: str):
    with pytest.raises(ValidationError, match="write 24GB, 24GiB, or 0"):
        WorkerSettings(vram=text)


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("24564\n", 24564 * 2**20),
        ("24564\n24564\n", 2 * 24564 * 2**20),
        ("", None),
        ("[N/A]\n", None),
        ("8\n[N/A]\n", None),
    ],
)
def test_all_gpus_together_or_nothing(said: str, size: int | None):
    assert read_answer(said) == size


def program(folder: Path, script: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def test_the_program_is_asked_only_about_this_machine_and_only_without_a_setting(tmp_path: Path):
    smi = program(tmp_path, 'echo "$@" >> "$0.asked"; echo 24564')
    assert await vram_of("", LOCAL, program=smi) == 24564 * 2**20

    def asked() -> list[str]:
        return Path(f"{smi}.asked").read_text().splitlines()

    assert asked() == ["--query-gpu=memory.total --format=csv,noheader,nounits"]
    assert await vram_of("0", LOCAL, program=smi) == 0
    assert await vram_of("8GB", LOCAL, program=smi) == 8 * 10**9
    assert await vram_of("", "http://gpu-1:11434", program=smi) is None
    assert len(asked()) == 1


async def test_without_an_answer_it_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert await vram_of("", LOCAL, program=str(tmp_path / "none")) is None
    assert await vram_of("", LOCAL, program=program(tmp_path, "echo 24564; exit 9")) is None
    monkeypatch.setattr(vram, "ASK_S", 0.1)
    assert await vram_of("", LOCAL, program=program(tmp_path, "exec sleep 60")) is None
