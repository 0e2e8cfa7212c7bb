"""Running `torchrl-shm` in this process, as a shell would."""

import io
from contextlib import redirect_stderr, redirect_stdout

from tests.recipes._helpers import Result
from torchrl_shm.tools.cli import main


def tool(*arguments: object) -> Result:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
    return Result(stdout.getvalue(), stderr.getvalue(), code)
