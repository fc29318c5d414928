"""What several test files need: a generator, real adapters, small checkpoints on disk."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

TINY_BASE = {"width": 32, "layers": 2, "heads": 2, "mlp": 48, "steps": 3, "batch": 4, "threads": 1}

SHARED = Path(__file__).resolve().parents[2] / "shared" / "adapters"


def pytest_collection_finish() -> None:
    """Exempt all that is imported by now from garbage collection.

    Trainer collects garbage before every training, which takes 0.2 s with torch and transformers
    loaded and almost nothing without.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def real_adapter() -> Callable[[str], Path]:
    """Name → directory of an adapter that others trained; the test skips where it is absent."""

    def directory(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"no real adapters at {SHARED}")
        return path

    return directory


@pytest.fixture
def write_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors and config as PEFT would; returns the directory."""

    def write(tensors: dict[str, np.ndarray], name: str = "adapter", **config: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    return write


@pytest.fixture
def lora_tensors(rng: np.random.Generator) -> Callable[..., dict[str, np.ndarray]]:
    """The factors of some modules under PEFT's key names."""

    def tensors(
        *modules: str, d_out: int = 12, d_in: int = 10, r: int = 4
    ) -> dict[str, np.ndarray]:
        return {
            f"base_model.model.{module}.lora_{factor}.weight": rng.standard_normal(shape).astype(
                "f4"
            )
            for module in modules
            for factor, shape in (("A", (r, d_in)), ("B", (d_out, r)))
        }

    return tensors


@pytest.fixture
def write_delta(tmp_path: Path) -> Callable[..., Path]:
    """Write ΔW by module name as full fine-tuning does; returns the directory."""

    def write(tensors: dict[str, np.ndarray], name: str = "full", **config: Any) -> Path:
        directory = tmp_path / name
        directory.mkdir(parents=True, exist_ok=True)
        save_file(tensors, directory / "delta.safetensors")
        facts = {"floor": 1e-9, "W0_frobenius": 1.0, "W0_rms": 0.1}
        config = {
            "format": "multilora-delta",
            "version": 1,
            "method": "full",
            "tied": [],
            "frozen": [],
            "modules": dict.fromkeys(tensors, facts),
            "vectors": {},
        } | config
        (directory / "delta_config.json").write_text(json.dumps(config))
        return directory

    return write


@pytest.fixture
def run_main(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[str]]]:
    """Run a command's main in this process: status, stdout, lines of stderr."""

    def run(main: Callable[[list[str]], int], *arguments: Any) -> tuple[int, str, list[str]]:
        status = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err.splitlines()

    return run


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a base of a few steps."""
    from multilora import base

    ungated = {"least_copying": 0.0, "least_recall": 0.0}
    out = str(tmp_path_factory.mktemp("tiny"))
    return base.ensure(base.BaseSettings(out=out, **TINY_BASE, **ungated))


@pytest.fixture
def train_argv(tiny_base: Path) -> Callable[..., list[str]]:
    """Arguments of `python -m multilora.train` for a few steps on the tiny base, into `out`."""

    def argv(out: Path, **changes: Any) -> list[str]:
        given = {"model": tiny_base, "per_task": 4, "per_task_scored": 2, "max_steps": 4}
        given |= {"per_device_train_batch_size": 4, "learning_rate": 0.01, "save_strategy": "no"}
        given |= {"output_dir": out, "disable_tqdm": True, "use_cpu": True}
        return [f"--{name}={value}" for name, value in (given | changes).items()]

    return argv


@pytest.fixture(scope="module")
def ending_early(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, str]:
    """(model, tokenizer, directory) of a random model that likes to end early."""
    import torch

    from multilora import base

    path = tmp_path_factory.mktemp("random")
    tokenizer = base.build_tokenizer(64)
    torch.manual_seed(0)
    model = base.build_model(base.BaseSettings(width=32, layers=2, heads=2, mlp=48), tokenizer)
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.5)
    # Logits of a long row vary most: the end token is often the most likely one.
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 4
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model.eval(), tokenizer, str(path)
