"""The runtime underneath reports to its maker when it is imported; under Easel it does not."""

import os
import subprocess
import sys

from tests.conftest import HOME


def test_the_runtime_keeps_no_identifier_and_reports_nothing(tmp_path):
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", "import app, openvino, openvino_genai"]
    subprocess.run(command, cwd=HOME, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
