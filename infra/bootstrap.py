"""Sets up `.venv` from requirements.lock: `python3 infra/bootstrap.py`. Standard library only, any Python 3.

`make` runs this first, so a machine that cannot run Tidemill must get a clear message here.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
LOCK = os.path.join(ROOT, "requirements.lock")
STAMP = os.path.join(VENV, ".tidemill-lock")
NEEDED_GIB = 10


def fail(sentence):
    """Exits with a sentence that says what to do."""
    sys.stderr.write("tidemill: " + sentence + "\n")
    sys.exit(1)


def check_machine():
    """Refuses an unsuitable machine before anything is written."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        fail(
            "Python 3.11, 3.12 or 3.13 is needed, this is {}.{} at {}. Install one and run `make PYTHON=python3.12 …`.".format(
                sys.version_info[0], sys.version_info[1], sys.executable
            )
        )
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        fail(
            "the stack on one machine runs on Linux x86-64, this is {} {}. "
            "Use the containers instead: infra/compose.".format(platform.system(), platform.machine())
        )
    missing = []
    for module in ("venv", "ensurepip", "ssl", "sqlite3"):
        try:
            __import__(module)
        except ImportError:
            missing.append(module)
    if missing:
        fail(
            "this Python lacks the module(s) {}. On Debian or Ubuntu: apt install python{}.{}-venv; "
            "else use a complete Python, for example one that uv installs.".format(
                ", ".join(missing), sys.version_info[0], sys.version_info[1]
            )
        )
    free = shutil.disk_usage(ROOT).free / 2**30
    if not os.path.exists(STAMP) and free < NEEDED_GIB:
        fail("{:.1f} GiB are free at {}, {} GiB are needed. Free some space.".format(free, ROOT, NEEDED_GIB))


def locked_uv():
    """The lock's own entry for uv, with its hashes."""
    with open(LOCK) as stream:
        text = stream.read()
    found = re.search(r"^uv==.*?(?=^\S)", text, re.M | re.S)
    if not found:
        fail("requirements.lock has no entry for uv; run `make lock`.")
    return found.group(0)


def is_usable(python, uv):
    """Whether `.venv` is complete and uses this Python; false after a failed attempt or with another PYTHON."""
    installer = "import sys" if os.path.exists(uv) else "import sys, pip"
    try:
        found = subprocess.run(
            [python, "-c", installer + "; print(sys.version)"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError:
        return False
    return found.returncode == 0 and found.stdout.decode().strip() == sys.version.strip()


def run(command, what, sentence):
    """Runs a step and prints one line for it, with its seconds. A step that fails shows its output."""
    environment = dict(os.environ, UV_LINK_MODE=os.environ.get("UV_LINK_MODE", "hardlink"), VIRTUAL_ENV=VENV)
    began = time.monotonic()
    again = "\r" + sentence if sys.stdout.isatty() else ""
    show(sentence)
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                if again:
                    show(again + " ({:.0f} s)".format(time.monotonic() - began))
                time.sleep(0.2)
        except BaseException:
            child.terminate()
            child.wait()
            raise
        show(again + " ({:.0f} s)\n".format(time.monotonic() - began))
        if child.returncode != 0:
            output.seek(0)
            sys.stderr.write(output.read().decode(errors="replace"))
            fail(what + " failed; see above. Fix the cause, then run the same command again: finished steps are kept.")


def show(text):
    """Prints at once, without a line break."""
    sys.stdout.write(text)
    sys.stdout.flush()


def main():
    """Makes `.venv` match the lock; does nothing if it already does."""
    check_machine()
    with open(LOCK, "rb") as stream, open(os.path.join(ROOT, "pyproject.toml"), "rb") as project:
        wanted = hashlib.sha256(stream.read() + project.read() + sys.version.encode()).hexdigest()
    if os.path.exists(STAMP):
        with open(STAMP) as stream:
            if stream.read() == wanted:
                return
    python = os.path.join(VENV, "bin", "python")
    uv = os.path.join(VENV, "bin", "uv")
    if not is_usable(python, uv):
        making = "tidemill: making .venv with Python {}".format(platform.python_version())
        run([sys.executable, "-m", "venv", "--clear", VENV], "Making .venv", making)
    if not os.path.exists(uv):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            requirements.write(locked_uv())
            requirements.flush()
            pip = [python, "-m", "pip", "install", "-q", "--require-hashes", "-r", requirements.name]
            run(pip, "Installing uv", "tidemill: installing uv")
    installing = "tidemill: installing the locked dependencies (about 7 GB the first time)"
    run([uv, "pip", "sync", "--require-hashes", LOCK], "Installing the dependencies", installing)
    own = [uv, "pip", "install", "--no-deps", "--no-build-isolation", "-e", "."]
    run(own, "Installing Tidemill", "tidemill: installing Tidemill into .venv")
    with open(STAMP, "w") as stream:
        stream.write(wanted)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("\ntidemill: interrupted; run the same command again, finished steps are kept.\n")
        sys.exit(130)
