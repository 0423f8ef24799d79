"""A virtual environment with what a test needs from PyPI, made once under target/."""

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from serving import TARGET  # noqa: E402


def within(name, packages):
    """Goes on in the environment of that name, which has these packages."""
    home = TARGET / f"{name}-venv"
    python = home / "bin/python"
    if Path(sys.prefix) == home:
        return
    marker = home / "packages"
    wanted = "\n".join(packages)
    if not marker.exists() or marker.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
        marker.write_text(wanted)
    sys.exit(subprocess.run([python, *sys.argv]).returncode)
