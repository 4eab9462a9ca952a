"""Translates by a seq2seq model of this machine, in a process of its own, so that the service holds no weights.

`python -m services.cleaning.adapters.translator` is that process: a line of JSON for each question, and one for each
answer. It knows no settings and no secrets, loads safetensors only and runs no code of a model's folder. It starts with
the first question, keeps the two models of a back-translation, and ends when nothing was asked for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from services.cleaning.engine.augmenter import Translator
from services.cleaning.engine.rewriter import CUT_OFF, EMPTY, REFUSED, Answer, Question
from services.kit.errors import FailedPreconditionError, UnavailableError
from services.kit.storage.artifacts import digest_folder

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LOADED: Final = 2
_IDLE_S: Final = 60.0
# What Python needs to find its modules, and the threads of its libraries; no setting of the service, and so no secret.
_ENVIRONMENT: Final = (
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"),
)
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def find_translator(folder: Path, name: str) -> Translator:
    """The translator `<folder>/<name>`, a seq2seq model in Hugging Face's layout.

    Raises:
        LookupError: it is not there, or is not such a model; the message says what to do.
    """
    if _NAME.fullmatch(name) is None:
        raise LookupError(f"{name!r} is not a valid name of a folder: use small letters, digits, . - and _")
    path = folder / name
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(each.parent.name for each in folder.glob("*/config.json"))) or "none"
        raise LookupError(
            f"the model {name!r} is not there: no file {path / 'config.json'} (there are: {known}); put a seq2seq "
            "model in Hugging Face's layout there"
        ) from error
    except (OSError, ValueError) as error:
        raise LookupError(f"{path / 'config.json'} cannot be read: {error}") from error
    if not (isinstance(config, dict) and config.get("is_encoder_decoder")):
        raise LookupError(f"{path} is not a seq2seq model: its config.json does not say `is_encoder_decoder`")
    if not any(path.glob("*.safetensors")):
        raise LookupError(
            f"{path} has no *.safetensors files; other weight formats (.bin, .pt, .pkl) can run code and are not loaded"
        )
    files = [each for each in sorted(path.rglob("*")) if each.is_file()]
    return Translator(str(path), _digest(path, tuple((str(each), _state(each)) for each in files)))


def _state(file: Path) -> tuple[int, int]:
    state = file.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=32)
def _digest(path: Path, files: tuple[tuple[str, tuple[int, int]], ...]) -> str:
    return digest_folder(path)


class Translators:
    """Implements `services.cleaning.app.ports.Models` for translators; one question at a time."""

    def __init__(self, timeout_s: float, idle_s: float = _IDLE_S) -> None:
        """Starts nothing.

        Args:
            timeout_s: of a question, loading its model included.
            idle_s: the process ends when nothing was asked for this long.
        """
        self._timeout_s, self._idle_s = timeout_s, idle_s
        self._turn = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: asyncio.TimerHandle | None = None

    @property
    def process_id(self) -> int | None:
        """Of the process; None while there is none."""
        return self._process.pid if self._process is not None else None

    async def ask(self, question: Question) -> Answer:
        """See the port."""
        assert isinstance(question.model, Translator)
        asked = {
            "folder": question.model.folder,
            "text": question.prompt,
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            "seed": question.sampling_seed,
        }
        async with self._turn:
            if self._end is not None:
                self._end.cancel()
            try:
                async with asyncio.timeout(self._timeout_s):
                    line = await asyncio.to_thread(self._exchange, self._process or self._start(), asked)
            except TimeoutError as error:
                self.close()
                what = f"The translation of a text took longer than {self._timeout_s:g} s."
                raise UnavailableError(what, reason="AUGMENT_SLOW") from error
            except BaseException:
                # It may still be at work on this text, and would answer the next question with it. Its end also ends
                # the thread that reads from it.
                self.close()
                raise
            if not line.endswith(b"\n"):
                raise UnavailableError(
                    f"The process that translates ended ({self.close()}); it may need more memory than there is.",
                    reason="AUGMENT_TRANSLATOR_ENDED",
                )
            self._end = asyncio.get_running_loop().call_later(self._idle_s, self.close)
        found: dict[str, str] = json.loads(line)
        if "unusable" in found:
            raise FailedPreconditionError(
                f"The model {Path(question.model.folder).name} cannot be loaded: {found['unusable']}",
                reason="AUGMENT_TRANSLATOR",
                metadata={"folder": question.model.folder},
            )
        return Answer(found["text"], found["dropped"], found["detail"])

    def close(self) -> int | None:
        """Ends the process, if there is one, and returns its exit code; the next question starts another one."""
        if self._end is not None:
            self._end.cancel()
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            # What it has not read is of no use to anyone.
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return code

    @staticmethod
    def _exchange(process: subprocess.Popen[bytes], asked: Mapping[str, Any]) -> bytes:
        """The line that answers a question; without its end if the process has ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return b""

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What the libraries say about a text may quote it.
            stderr=subprocess.DEVNULL,
            env={**environment, **_OFFLINE},
        )
        return self._process


def _serve() -> None:
    """Answers until the service ends."""
    # Ctrl-C ends the service, and that ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    answers = sys.stdout
    # What a library prints must not be taken for an answer.
    sys.stdout = sys.stderr
    models: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
    for line in sys.stdin:
        json.dump(_answered(models, json.loads(line)), answers)
        answers.write("\n")
        answers.flush()


def _answered(models: OrderedDict[str, tuple[Any, Any]], asked: Mapping[str, Any]) -> dict[str, str]:
    folder = asked["folder"]
    try:
        if folder not in models:
            while len(models) >= _LOADED:
                models.popitem(last=False)
            models[folder] = _loaded(folder)
        models.move_to_end(folder)
    except ImportError as error:
        return {"unusable": f"a package is missing where the cleaning service runs: {error}"[:500]}
    except Exception as error:
        return {"unusable": f"{type(error).__name__}: {error}"[:500]}
    try:
        text, whole = _translated(*models[folder], asked)
    except Exception as error:
        # Its message may quote the text.
        return {"text": "", "dropped": REFUSED, "detail": f"It cannot be translated ({type(error).__name__})."}
    if not whole:
        return {"text": "", "dropped": CUT_OFF, "detail": "It is longer than the model or max_tokens allows."}
    return {"text": text, "dropped": "" if text else EMPTY, "detail": "" if text else "Its translation is empty."}


def _loaded(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    local = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, dtype="float32", **local)
    return tokenizer, model.eval()


def _translated(tokenizer: Any, model: Any, asked: Mapping[str, Any]) -> tuple[str, bool]:
    """The translation, and whether the whole text was read and written."""
    import torch

    given = tokenizer(asked["text"], return_tensors="pt", return_token_type_ids=False)
    # T5 has positions without end, and its configuration no limit.
    limit = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    if given["input_ids"].shape[1] > limit:
        return "", False
    torch.manual_seed(asked["seed"])
    sampling: dict[str, Any] = {"do_sample": False}
    if asked["temperature"] > 0:
        sampling = {"do_sample": True, "temperature": asked["temperature"], "num_beams": 1}
    with torch.inference_mode():
        made = model.generate(**given, max_length=None, max_new_tokens=min(asked["max_tokens"], limit - 1), **sampling)
    tokens = made[0].tolist()
    ends = model.generation_config.eos_token_id
    whole = tokens[-1] in (ends if isinstance(ends, list) else [ends])
    return tokenizer.decode(tokens, skip_special_tokens=True).strip(), whole


if __name__ == "__main__":
    _serve()
