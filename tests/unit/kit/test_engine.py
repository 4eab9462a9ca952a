"""How models are opened in OpenVINO: nothing is sent, and every processor computes alike."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.kit import engine

_ROOT = Path(__file__).parents[3]
# What openvino-telemetry would be, were it installed: it writes down that it was loaded.
_SPY = "from pathlib import Path\nPath(__file__).with_name('loaded').touch()\nclass Telemetry: ...\n"


def test_the_lock_installs_no_telemetry() -> None:
    assert importlib.util.find_spec("openvino") is not None
    assert importlib.util.find_spec("openvino_telemetry") is None


def test_a_telemetry_that_something_else_installed_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text(_SPY)
    code = "from services.kit.engine import import_openvino; import_openvino(); import nncf, openvino_genai"
    paths = [str(tmp_path), str(_ROOT)]
    script = f"import sys; sys.path[:0] = {json.dumps(paths)}; {code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "openvino_telemetry" / "loaded").exists()


def test_without_vnni_activations_stay_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert engine._options()["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert engine._options()["INFERENCE_PRECISION_HINT"] == "f32"


def test_a_block_of_the_cache_has_the_bytes_that_the_engine_takes() -> None:
    """SmolLM2-135M: 437,760 bytes by the engine's own metrics."""
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576}
    assert engine._block_bytes(config) == 437_760


def test_a_graph_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / engine.ENCODER).write_text("<net")
    with pytest.raises(ValueError, match=rf"^{engine.ENCODER} cannot be read: "):
        engine.open_encoder(tmp_path)
