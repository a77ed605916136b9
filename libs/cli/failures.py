"""The one way a command ends badly: a sentence for a human, a code for a program, exit code 1 (2 for the code `usage`)."""

from typing import Any


class CommandFailed(Exception):
    """`str()` is one sentence that says what was wrong and what to do; it never holds a secret."""

    def __init__(
        self, message: str, *, code: str = "failed", more: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.more = more  # lines below the sentence, such as the end of a log
        self.details = details  # for programs
