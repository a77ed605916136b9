"""The one way the simulator refuses its input."""


class BadInput(Exception):
    """`str()` is one sentence that names the file or option, the place in it, and what is wrong there."""
