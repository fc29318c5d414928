"""MultiLoRA, R-LoRA, MTL-LoRA and task experts as methods of Hugging Face PEFT.

Importing this package registers the first three with PEFT, so that `peft.get_peft_model`,
`PeftModel.from_pretrained` and the rest of PEFT accept them like LoRA. Task experts are LoRAs of
PEFT itself, held by an `ExpertBank`.
"""

import os
import sys

# The package beside this one, not what is called so in the working directory
# (`analysis.process.start`).
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import analysis  # noqa: F401

sys.path.pop(0)

from collections.abc import Iterator
from contextlib import contextmanager

from analysis import extras

PEFT = "peft>=0.21,<0.22"  # the versions that work, as in pyproject.toml


@contextmanager
def _peft_that_fits() -> Iterator[None]:
    """Say which versions of PEFT work if the installed one lacks what is imported from it."""
    try:
        yield
    except ImportError as error:
        place = error.name or ""
        if place.partition(".")[0] != "peft" or (
            isinstance(error, ModuleNotFoundError) and place == "peft"
        ):
            raise
        from importlib.metadata import version

        raise extras.MissingLibraryError(
            f"needs {PEFT}; peft {version('peft')} has moved what is imported from {place}:"
            f" python -m pip install '{PEFT}'",
            name="peft",
        ) from error


with extras.named(), _peft_that_fits():
    from peft.mapping import (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
    )

    from multilora.methods.config import MethodType, MtlLoraConfig, MultiLoraConfig, RLoraConfig
    from multilora.methods.experts import ExpertBank
    from multilora.methods.mtllora import MtlLoraModel
    from multilora.methods.rlora import RLoraModel
    from multilora.methods.tuner import MultiLoraModel

__all__ = [
    "ExpertBank",
    "MethodType",
    "MtlLoraConfig",
    "MtlLoraModel",
    "MultiLoraConfig",
    "MultiLoraModel",
    "RLoraConfig",
    "RLoraModel",
]

# peft.utils.register_peft_method accepts only members of PEFT's own enum, so PEFT's tables are
# filled here. They are not public API: hence the narrow range of PEFT versions, and a test.
for _config, _model in [
    (MultiLoraConfig, MultiLoraModel),
    (RLoraConfig, RLoraModel),
    (MtlLoraConfig, MtlLoraModel),
]:
    PEFT_TYPE_TO_CONFIG_MAPPING[_config.method] = _config
    PEFT_TYPE_TO_TUNER_MAPPING[_config.method] = _model
    PEFT_TYPE_TO_PREFIX_MAPPING[_config.method] = _model.prefix
