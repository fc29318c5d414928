"""MultiLoRA and its relatives as methods of Hugging Face PEFT.

Importing this package registers them: afterwards `peft.get_peft_model`, `PeftModel.from_pretrained`
and the rest of PEFT know them as they know LoRA.
"""

import peft.mapping

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

# peft.utils.register_peft_method takes members of PEFT's own enum only, so its tables are filled
# here. They are not public API: hence the narrow range of PEFT versions, and a test.
for _config, _model in [
    (MultiLoraConfig, MultiLoraModel),
    (RLoraConfig, RLoraModel),
    (MtlLoraConfig, MtlLoraModel),
]:
    peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[_config.method] = _config
    peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[_config.method] = _model
    peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[_config.method] = _model.prefix
